"""Runs the `docker-compose.yml` of a pattern without Docker.

Each service becomes a process of this machine, supervised by a supervisord of the pattern's own.
All state is in `PATTERN_DIR/.local`: logs, volumes, and under `services` the commands that run.
"""

import argparse
import errno
import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import xmlrpc.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from supervisor.xmlrpc import SupervisorTransport

from tools.read.compose import Compose, ComposeError, Service, load
from tools.run.binaries import MissingServerError
from tools.run.processes import (
    MARK_VARIABLE,
    all_of,
    kill_all,
    listener_of,
    recorded,
    wait_until_gone,
)
from tools.run.rewrite import Launch, launch_of, state_dir, temporary_dir

ROOT = Path(__file__).resolve().parents[2]
PROBE_INTERVAL_SECONDS = 0.1
READY_DEADLINE_SECONDS = 60
POLL_SECONDS = 0.02
# The path of a Unix socket has at most 104 characters, and supervisord appends its process id.
SOCKET_PATH_MAX = 90
LAST_LOG_LINES = 20
KILL_ROUNDS = 10
FORK_TO_EXEC_SECONDS = 0.2
COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow")


class LocalError(Exception):
    """Says why a pattern does not run, or stopped running."""


# --- verbs ----------------------------------------------------------------------------------------


def up(pattern_dir: Path) -> None:
    """Starts every service and returns when all are ready; on failure nothing is left running."""
    compose = load(pattern_dir)
    with only_one(compose):
        launches = {name: launch_of(compose, item) for name, item in compose.services.items()}
        try:
            missing = prepare_up(compose, launches)
            if not missing:
                print(f"{compose.name} is already up")
                return
            wait_until_ready(compose, launches, missing)
        except BaseException:
            with uninterrupted():
                # A process loses a signal that comes between its fork and its exec.
                sleep(FORK_TO_EXEC_SECONDS)
                take_down(compose)
            raise
    print('see the logs with "make logs", stop it with "make down"')


def down(pattern_dir: Path, volumes: bool = False) -> None:
    """Stops every service; the volumes stay unless `volumes` is set."""
    compose = load(pattern_dir)
    with only_one(compose):
        show_death(compose)
        was_up = take_down(compose)
        if volumes:
            remove_volumes(compose)
    print(f"{compose.name} is down" if was_up else f"{compose.name} is not up")


def stop(pattern_dir: Path, service: str) -> None:
    """Stops one service with its own stop signal and grace period; the others stay up."""
    compose = running(pattern_dir)
    compose.service(service)
    with only_one(compose), supervisor(compose) as server:
        begin = monotonic()
        server.supervisor.stopProcessGroup(service)
        print(f"{service} stopped in {monotonic() - begin:.1f} s")


def start(pattern_dir: Path, service: str) -> None:
    """Starts one service that was stopped or killed, and returns when it is ready."""
    compose = running(pattern_dir)
    launch = launch_of(compose, compose.service(service))
    with only_one(compose):
        if states(compose)[service] == {"RUNNING"}:
            print(f"{service} is already up")
            return
        wait_until_ready(compose, {service: launch}, [service])


def kill(pattern_dir: Path, service: str) -> None:
    """Kills every process of one service with SIGKILL; it stays down until it is started."""
    compose = running(pattern_dir)
    compose.service(service)
    with only_one(compose), supervisor(compose) as server:
        server.pattern.kill(service)
        while states(compose)[service] & {"STOPPING", "RUNNING", "STARTING"}:
            sleep(POLL_SECONDS)
        print(f"{service} killed")


def logs(pattern_dir: Path, service: str | None, follow: bool, tail: int | None) -> None:
    """Prints what the services have written, as far as possible in the order of writing."""
    compose = load(pattern_dir)
    if service:
        compose.service(service)
    names = [name for item in compose.services.values() for name in process_names(item)]
    wanted = set(process_names(compose.services[service])) if service else set(names)
    path = state_dir(compose.pattern_dir) / "log" / "all"
    if not path.exists():
        raise LocalError(f"{compose.name} has no logs: run `make up` first")

    console = Console(highlight=False, soft_wrap=True)
    width = max(map(len, names))
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        lines = [line for line in file if line.partition("\t")[0] in wanted]
        for line in lines[-tail:] if tail else lines if tail is None else []:
            print_log_line(console, line, names, width)
        while follow:
            if line := file.readline():
                if line.partition("\t")[0] in wanted:
                    print_log_line(console, line, names, width)
            elif not is_up(compose):
                return
            else:
                # The file starts anew when it has grown too large.
                file.seek(min(file.tell(), path.stat().st_size))
                sleep(PROBE_INTERVAL_SECONDS)


def ps(pattern_dir: Path) -> None:
    """Prints a table of the services."""
    compose = running(pattern_dir)
    table = Table("service", "state", "pid", "port", "uptime", title=compose.name)
    with supervisor(compose) as server:
        found = {info["name"]: info for info in server.supervisor.getAllProcessInfo()}
    for service in compose.services.values():
        ports = ", ".join(map(str, service.ports))
        for name in process_names(service):
            info = found[name]
            alive = info["statename"] == "RUNNING"
            uptime = f"{max(0, round(time() - info['start']))} s" if alive else ""
            state = info["statename"].lower()
            table.add_row(name, state, str(info["pid"] or ""), ports, uptime)
    Console().print(table)


def check(pattern_dir: Path) -> None:
    """Reads the file and says what it defines; starts nothing."""
    compose = load(pattern_dir)
    for service in compose.services.values():
        ports = f" on port {', '.join(map(str, service.ports))}" if service.ports else ""
        copies = f" x {service.replicas}" if service.replicas > 1 else ""
        print(f"{service.name}{copies}{ports}")


# --- what runs ------------------------------------------------------------------------------------


def running(pattern_dir: Path) -> Compose:
    compose = load(pattern_dir)
    if not is_up(compose):
        show_death(compose)
        raise LocalError(f"{compose.name} is not up: run `make up` first")
    if set(json.loads(read_plan(compose))) != set(compose.services):
        raise LocalError("docker-compose.yml has changed since `make up`: run it again")
    return compose


def process_names(service: Service) -> list[str]:
    if service.replicas == 1:
        return [service.name]
    return [f"{service.name}-{number}" for number in range(1, service.replicas + 1)]


def states(compose: Compose) -> dict[str, set[str]]:
    """Returns the states of the processes of each service; one that ended well is `DONE`."""
    found: dict[str, set[str]] = {name: set() for name in compose.services}
    with supervisor(compose) as server:
        for info in server.supervisor.getAllProcessInfo():
            done = info["statename"] == "EXITED" and info["exitstatus"] == 0
            found.setdefault(info["group"], set()).add("DONE" if done else info["statename"])
    return found


def missing_services(compose: Compose) -> list[str]:
    one_shots = compose.one_shots()
    return [
        name
        for name, found in states(compose).items()
        if found != {"RUNNING"} and not (name in one_shots and found == {"DONE"})
    ]


def socket_path(compose: Compose) -> Path:
    path = temporary_dir(compose.pattern_dir, "socket") / "supervisor"
    if len(str(path)) > SOCKET_PATH_MAX:
        raise LocalError(f"the path {path} is too long for a socket: set TMPDIR to a shorter one")
    return path


@contextmanager
def supervisor(compose: Compose) -> Iterator[Any]:
    transport = SupervisorTransport(serverurl=f"unix://{socket_path(compose)}")
    try:
        yield xmlrpc.client.ServerProxy("http://localhost", transport=transport)
    except (ConnectionError, FileNotFoundError, xmlrpc.client.ProtocolError):
        show_death(compose)
        raise LocalError(f"the supervisor of {compose.name} has ended: run `make up`") from None
    except xmlrpc.client.Fault as fault:
        raise LocalError(f"the supervisor of {compose.name} refuses: {fault.faultString}") from None
    finally:
        transport.close()


def is_up(compose: Compose) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(socket_path(compose)))
    except OSError:
        return False
    return not death_file(compose).exists()


@contextmanager
def only_one(compose: Compose) -> Iterator[None]:
    """Keeps a second command from changing what this one is about to change."""
    folder = state_dir(compose.pattern_dir)
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(
                f"another command is starting or stopping {compose.name}: let it end first"
            ) from None
        yield


# --- start ----------------------------------------------------------------------------------------


def prepare_up(compose: Compose, launches: dict[str, Launch]) -> list[str]:
    """Starts the supervisor unless it runs as the file says; returns the services to start."""
    plan = plan_of(compose, launches)
    if is_up(compose):
        if read_plan(compose) == plan:
            return missing_services(compose)
        print("docker-compose.yml has changed: starting everything anew")
    show_death(compose)
    take_down(compose)
    refuse_held_ports(compose)
    prepare(compose, launches, plan)
    start_supervisor(compose)
    return list(compose.services)


def refuse_held_ports(compose: Compose) -> None:
    for port in sorted(port for item in compose.services.values() for port in item.ports):
        with socket.socket() as probe:
            # Without this a port counts as held for a minute after its connections were closed.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise LocalError(f"port {port} cannot be used: {error.strerror}") from None
                holder = listener_of(port)
                who = f" (pid {holder.pid}, {holder.name()})" if holder else ""
                raise LocalError(
                    f"port {port} on 127.0.0.1 is in use by another program{who}; "
                    "stop it, then try again"
                ) from None


def plan_of(compose: Compose, launches: dict[str, Launch]) -> str:
    """Writes down all that an `up` starts: a second `up` sees by it whether something changed."""
    one_shots = compose.one_shots()
    plan = {
        name: {
            "restart": launch.service.restart,
            "one_shot": name in one_shots,
            "script": script_of(compose, launch),
            "program": program_section(launch.service, priority),
            "health": launch.health_command,
        }
        for priority, (name, launch) in enumerate(launches.items())
    }
    return json.dumps(plan, indent=1)


def read_plan(compose: Compose) -> str:
    with suppress(FileNotFoundError):
        return (state_dir(compose.pattern_dir) / "plan.json").read_text(encoding="utf-8")
    return ""


def script_of(compose: Compose, launch: Launch) -> str:
    """Returns the shell script that becomes the service, with exactly its own environment."""
    state = state_dir(compose.pattern_dir)
    variables = [shlex.quote(f"{name}={value}") for name, value in launch.environment.items()]
    pids, directory = shlex.quote(f"{state}/pids"), shlex.quote(str(launch.directory))
    return "\n".join(
        [
            "#!/bin/sh -e",
            f'echo $$ > {pids}/"$SUPERVISOR_PROCESS_NAME"',
            f"cd {directory}",
            f"exec env -i {' '.join(variables)} \\",
            f'  {MARK_VARIABLE}={shlex.quote(f"{state}#")}"$SUPERVISOR_PROCESS_NAME" \\',
            f"  {shlex.join(launch.command)}",
            "",
        ]
    )


def program_section(service: Service, priority: int) -> str:
    # Relative paths throughout: supervisord's file format has no way to quote a path.
    name = "%(program_name)s" + ("-%(process_num)d" if service.replicas > 1 else "")
    return f"""
[program:{service.name}]
command = /bin/sh -e services/{service.name}.sh
process_name = {name}
numprocs = {service.replicas}
numprocs_start = 1
priority = {priority}
autostart = false
autorestart = false
startsecs = 0
startretries = 1
stopsignal = {service.stop_signal}
stopwaitsecs = {max(1, math.ceil(service.stop_grace_seconds))}
killasgroup = true
redirect_stderr = true
stdout_logfile = log/{name}.log
stdout_events_enabled = true
"""


def prepare(compose: Compose, launches: dict[str, Launch], plan: str) -> None:
    state = state_dir(compose.pattern_dir)
    for name in ("log", "pids", "scratch", "services"):
        shutil.rmtree(state / name, ignore_errors=True)
        (state / name).mkdir()
    shutil.rmtree(temporary_dir(compose.pattern_dir, "scratch"), ignore_errors=True)
    own_folder(socket_path(compose).parent, 0o700)
    for launch in launches.values():
        make_folders(compose, launch)
        script = state / "services" / f"{launch.service.name}.sh"
        write_privately(script, script_of(compose, launch))
    (state / "log" / "all").touch()
    write_privately(state / "plan.json", plan)
    programs = "".join(
        program_section(launch.service, priority)
        for priority, launch in enumerate(launches.values())
    )
    write_privately(
        state / "supervisord.conf",
        f"""[supervisord]
logfile = supervisord.log
pidfile = supervisord.pid
nocleanup = true

[unix_http_server]
file = {socket_path(compose)}
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[rpcinterface:pattern]
supervisor.rpcinterface_factory = tools.run.watch:make_interface
{programs}""",
    )


def make_folders(compose: Compose, launch: Launch) -> None:
    for purpose in ("volumes", "scratch"):
        folder = temporary_dir(compose.pattern_dir, purpose)
        if launch.directory.is_relative_to(folder):
            print(f"{launch.service.name} keeps its data in {launch.directory}, because the user")
            print(f'"nobody", as whom it runs, cannot reach {compose.pattern_dir}')
            own_folder(folder, 0o711)
    launch.directory.mkdir(parents=True, exist_ok=True)
    for mount in launch.service.mounts:
        if mount.named:
            volume = state_dir(compose.pattern_dir) / "volumes" / mount.source
            volume.mkdir(parents=True, exist_ok=True)


def own_folder(folder: Path, mode: int) -> None:
    """Makes a folder in the temporary directory, where others could have made it before."""
    folder.mkdir(exist_ok=True)
    found = folder.lstat()
    if folder.is_symlink() or found.st_uid != os.getuid():
        raise LocalError(f"{folder} belongs to another user: remove it, or set TMPDIR")
    folder.chmod(mode)


def write_privately(path: Path, text: str) -> None:
    """Writes a file that may hold a password."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def start_supervisor(compose: Compose) -> None:
    state = state_dir(compose.pattern_dir)
    started = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisord", "-c", "supervisord.conf"],
        cwd=state,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "PYTHONPATH": str(ROOT),
            MARK_VARIABLE: f"{state}#",
        },
        # Ctrl-C at the terminal is for this program, which then stops the supervisor in order.
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if started.returncode:
        raise LocalError(f"the supervisor does not start: {started.stdout.strip()}")


@dataclass
class Probe:
    """The health check of a service that is starting."""

    process: subprocess.Popen[bytes]
    started: float


def wait_until_ready(compose: Compose, launches: dict[str, Launch], names: list[str]) -> None:
    """Starts services as soon as those before them are ready, until all of them are."""
    waiting = list(names)
    started: dict[str, float] = {}
    probes: dict[str, Probe] = {}
    try:
        with supervisor(compose) as server:
            while waiting:
                raise_if_died(compose)
                found = states(compose)
                for name in tuple(waiting):
                    if name not in started:
                        if may_start(compose, name, waiting, started):
                            server.supervisor.startProcessGroup(name, False)
                            started[name] = monotonic()
                    elif is_ready(compose, launches[name], found[name], probes):
                        waiting.remove(name)
                        print(f"{name} ready in {monotonic() - started[name]:.1f} s", flush=True)
                    else:
                        refuse_to_wait_longer(compose, launches[name], started[name])
                sleep(POLL_SECONDS)
        raise_if_died(compose)
    except LocalError:
        raise_if_died(compose)
        raise
    finally:
        for probe in probes.values():
            end_probe(probe)


def may_start(compose: Compose, name: str, waiting: list[str], started: dict[str, float]) -> bool:
    for other, dependency in compose.services[name].depends_on.items():
        not_begun = other in waiting and other not in started
        if not_begun or (dependency.condition != "service_started" and other in waiting):
            return False
    return True


def is_ready(compose: Compose, launch: Launch, found: set[str], probes: dict[str, Probe]) -> bool:
    service = launch.service
    if service.name in compose.one_shots():
        return found == {"DONE"}
    if found != {"RUNNING"}:
        return False
    if service.health is None:
        return True

    probe = probes.get(service.name)
    if probe and probe.process.poll() == 0:
        return True
    age_seconds = monotonic() - probe.started if probe else math.inf
    if probe and probe.process.poll() is None and age_seconds < service.health.timeout_seconds:
        return False
    if age_seconds < PROBE_INTERVAL_SECONDS:
        return False
    if probe:
        end_probe(probe)
    probes[service.name] = start_probe(compose, launch)
    return False


def start_probe(compose: Compose, launch: Launch) -> Probe:
    name = launch.service.name
    state = state_dir(compose.pattern_dir)
    command = shutil.which(launch.health_command[0], path=launch.environment["PATH"])
    if not command:
        raise LocalError(
            f'service "{name}": the health check needs {launch.health_command[0]}, '
            "which is not installed"
        )
    with (state / "log" / f"{name}.health").open("ab") as output:
        process = subprocess.Popen(
            [command, *launch.health_command[1:]],
            cwd=launch.directory,
            env={**launch.environment, MARK_VARIABLE: f"{state}#{name}.health"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Probe(process, monotonic())


def end_probe(probe: Probe) -> None:
    if probe.process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(probe.process.pid, signal.SIGKILL)
    probe.process.wait()


def refuse_to_wait_longer(compose: Compose, launch: Launch, started: float) -> None:
    service = launch.service
    # A job that others wait for takes as long as it takes.
    if service.name in compose.one_shots():
        return
    deadline_seconds: float = READY_DEADLINE_SECONDS
    if health := service.health:
        allowed_seconds = health.start_period_seconds + health.interval_seconds * health.retries
        deadline_seconds = max(deadline_seconds, allowed_seconds)
    if monotonic() - started < deadline_seconds:
        return
    said = state_dir(compose.pattern_dir) / "log" / f"{service.name}.health"
    raise LocalError(
        f'service "{service.name}" is not ready after {deadline_seconds:.0f} s\n'
        f"its health check says:\n{last_lines(said)}\n"
        f"its last log lines:\n{last_log(compose, process_names(service)[0])}"
    )


# --- death ----------------------------------------------------------------------------------------


def death_file(compose: Compose) -> Path:
    return state_dir(compose.pattern_dir) / "death.json"


def raise_if_died(compose: Compose) -> None:
    if message := death_message(compose):
        take_down(compose)
        raise LocalError(message)


def show_death(compose: Compose) -> None:
    """Tells what took the pattern down since the last command, once."""
    if message := death_message(compose):
        take_down(compose)
        print(message, file=sys.stderr)


def death_message(compose: Compose) -> str:
    try:
        death: dict[str, Any] = json.loads(death_file(compose).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return ""
    how = f"ended with status {death['status']}"
    if death["status"] < 0:
        how = "was killed"
    return (
        f'service "{death["service"]}" {how}, so the others were stopped; its last log lines:\n'
        f"{last_log(compose, death['process'])}"
    )


def last_log(compose: Compose, process: str) -> str:
    return last_lines(state_dir(compose.pattern_dir) / "log" / f"{process}.log")


def last_lines(path: Path) -> str:
    with suppress(FileNotFoundError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LAST_LOG_LINES:]) or "  (none)"
    return "  (none)"


# --- stop -----------------------------------------------------------------------------------------


def take_down(compose: Compose) -> bool:
    """Stops everything, in order where the supervisor lives; tells whether anything ran."""
    state = state_dir(compose.pattern_dir)
    daemon = recorded(state / "supervisord.pid")
    if daemon:
        # As `supervisorctl shutdown`, and it works while the supervisor is still starting.
        daemon.terminate()
        grace = sum(item.stop_grace_seconds + 2 for item in compose.services.values())
        wait_until_gone([daemon], grace + 10)
    was_up = daemon is not None
    # A process may start another one while it is looked for.
    for _ in range(KILL_ROUNDS):
        if not (leftovers := all_of(state)):
            break
        was_up = True
        kill_all(leftovers)
    else:
        pids = ", ".join(str(process.pid) for process in leftovers)
        raise LocalError(f"processes of {compose.name} cannot be ended: {pids}")
    for name in ("supervisord.pid", "death.json"):
        (state / name).unlink(missing_ok=True)
    shutil.rmtree(state / "pids", ignore_errors=True)
    shutil.rmtree(socket_path(compose).parent, ignore_errors=True)
    return was_up


def remove_volumes(compose: Compose) -> None:
    shutil.rmtree(state_dir(compose.pattern_dir) / "volumes", ignore_errors=True)
    for purpose in ("volumes", "scratch"):
        shutil.rmtree(temporary_dir(compose.pattern_dir, purpose), ignore_errors=True)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Keeps a second Ctrl-C from leaving half of the services running."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# --- command line ---------------------------------------------------------------------------------


def print_log_line(console: Console, line: str, names: list[str], width: int) -> None:
    name, _, text = line.rstrip("\n").partition("\t")
    colour = COLOURS[names.index(name) % len(COLOURS)]
    console.print(f"[{colour}]{name:<{width}} |[/] {escape(text)}")


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.run.local",
        description="Run a pattern's docker-compose.yml without Docker.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    texts = {
        "up": "start every service and wait until all are ready",
        "down": "stop every service",
        "stop": "stop one service; the others stay up",
        "start": "start one service again and wait until it is ready",
        "kill": "send SIGKILL to one service, which stays down until it is started",
        "logs": "print what the services have written",
        "ps": "list the services with their state, pid, port and uptime",
        "check": "read and validate the file, start nothing",
    }
    for verb, text in texts.items():
        command = verbs.add_parser(verb, help=text, description=text.capitalize() + ".")
        command.add_argument("pattern_dir", type=Path, help="the directory of the pattern")
        if verb in ("stop", "start", "kill"):
            command.add_argument("service", help="a service of docker-compose.yml")
        if verb == "logs":
            command.add_argument("service", nargs="?", help="only this service")
            command.add_argument("--follow", action="store_true", help="go on as lines come in")
            command.add_argument("--tail", type=int, metavar="N", help="only the last N lines")
        if verb == "down":
            command.add_argument("--volumes", action="store_true", help="remove the volumes too")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = vars(arguments_of(words))
    verb = arguments.pop("verb")
    verbs: dict[str, Callable[..., None]] = {
        "up": up,
        "down": down,
        "stop": stop,
        "start": start,
        "kill": kill,
        "logs": logs,
        "ps": ps,
        "check": check,
    }
    try:
        verbs[verb](**arguments)
    except (ComposeError, LocalError, MissingServerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if verb == "up":
            print("interrupted: nothing is left running", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # A terminal that closes, or a timeout, must leave as little behind as Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    sys.exit(main())
