"""Talks to the supervisord of a pattern, and takes the pattern down with or without it."""

import json
import shutil
import sys
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import Signals
from typing import Any

from psutil import NoSuchProcess, Process
from supervisor.xmlrpc import SupervisorTransport

from tools.read.compose import Compose, load
from tools.run.processes import (
    all_of,
    kill_all,
    recorded,
    supervisor_of,
    unpause_all,
    wait_until_gone,
)
from tools.run.rewrite import state_dir, tmpfs_dir
from tools.run.state import (
    RUN,
    LocalError,
    as_started,
    death_file,
    is_up,
    last_log,
    read_plan,
    socket_path,
)

KILL_ROUNDS = 10


@contextmanager
def supervisor(compose: Compose) -> Iterator[Any]:
    transport = SupervisorTransport(serverurl=f"unix://{socket_path(compose)}")
    try:
        yield xmlrpc.client.ServerProxy("http://localhost", transport=transport)
    except (ConnectionError, FileNotFoundError, xmlrpc.client.ProtocolError):
        show_death(compose)
        raise LocalError(f"the supervisor of {compose.name} has ended: run `make up`") from None
    except xmlrpc.client.Fault as fault:
        raise LocalError(f"the supervisor of {compose.name} failed: {fault.faultString}") from None
    finally:
        transport.close()


def running(pattern_dir: Path, service: str | None = None) -> Compose:
    """Returns a pattern that is up; `up` must have started the service, if one is given."""
    compose = load(pattern_dir)
    if not is_up(compose):
        show_death(compose)
        raise LocalError(f"{compose.name} is not up: run `make up` first")
    compose = as_started(compose)
    if read_plan(compose).get("stated", {}).keys() != compose.of_up().keys():
        raise LocalError("docker-compose.yml has changed since `make up`: run it again")
    if service and compose.service(service).is_job:
        raise LocalError(
            f"{service} runs on demand: make run SERVICE={service} starts it, make kill ends it"
        )
    if service and service not in compose.of_up():
        (profile,) = compose.services[service].profiles
        raise LocalError(f"{service} is not up: make up PROFILE={profile} starts it")
    return compose


def states(compose: Compose) -> dict[str, set[str]]:
    """Returns the process states of each service; `DONE` means exited with status 0."""
    found: dict[str, set[str]] = {name: set() for name in compose.of_up()}
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
        if found != {"DONE" if name in one_shots else "RUNNING"}
    ]


def take_down(compose: Compose) -> bool:
    """Stops everything, in order if the supervisor runs; returns whether anything was running."""
    state = state_dir(compose.pattern_dir)
    runs = stop_runs(compose)
    daemon = supervisor_of(state)
    if daemon:
        # A paused process does not receive its stop signal.
        unpause_all(all_of(state))
        # Like `supervisorctl shutdown`, but it also works while the supervisor starts.
        daemon.terminate()
        grace = sum(item.stop_grace_seconds + 2 for item in compose.services.values())
        wait_until_gone([daemon], grace + 10)
    was_up = bool(daemon or runs)
    # A process may start another one during the search.
    for _ in range(KILL_ROUNDS):
        if not (leftovers := all_of(state)):
            break
        was_up = True
        kill_all(leftovers)
    else:
        pids = ", ".join(str(process.pid) for process in leftovers)
        raise LocalError(f"processes of {compose.name} cannot be killed: {pids}")
    for name in ("supervisord.pid", "death.json", "plan.json"):
        (state / name).unlink(missing_ok=True)
    shutil.rmtree(state / "pids", ignore_errors=True)
    shutil.rmtree(socket_path(compose).parent, ignore_errors=True)
    for service in compose.services.values():
        shutil.rmtree(tmpfs_dir(compose, service), ignore_errors=True)
    return was_up


def stop_runs(compose: Compose) -> list[Process]:
    """Asks every job that runs to stop, before what it uses; returns their main processes."""
    stopped = []
    grace_seconds = 0.0
    for name in compose.jobs():
        service = compose.services[name]
        for pid_file in (state_dir(compose.pattern_dir) / "pids").glob(f"{name}{RUN}*"):
            if process := recorded(pid_file):
                with suppress(NoSuchProcess):
                    process.send_signal(Signals[service.stop_signal])
                stopped.append(process)
                grace_seconds = max(grace_seconds, service.stop_grace_seconds)
    wait_until_gone(stopped, grace_seconds)
    return stopped


def show_death(compose: Compose) -> None:
    """Prints, once, what took the pattern down since the last command."""
    if message := death_message(compose):
        take_down(compose)
        print(message, file=sys.stderr)


def raise_if_died(compose: Compose) -> None:
    if message := death_message(compose):
        take_down(compose)
        raise LocalError(message)


def death_message(compose: Compose) -> str:
    try:
        death: dict[str, Any] = json.loads(death_file(compose).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return ""
    how = f"ended with status {death['status']}"
    if death["status"] < 0:
        how = "was killed"
    return (
        f'service "{death["service"]}" {how}, so the others were stopped; last log lines:\n'
        f"{last_log(compose, death['process'])}"
    )
