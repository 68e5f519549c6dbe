"""Starts and stops a pattern or one of its services."""

import errno
import shutil
import socket
from pathlib import Path
from time import monotonic, sleep

from tools.read.compose import Compose, load
from tools.run.interrupts import uninterrupted
from tools.run.plan import plan_of, prepare, start_supervisor
from tools.run.processes import listener_of
from tools.run.ready import silent_services, wait_until_ready
from tools.run.rewrite import Launch, launch_of, state_dir, temporary_dir
from tools.run.state import LocalError, is_up, only_one, read_plan
from tools.run.supervisor import (
    missing_services,
    running,
    show_death,
    states,
    supervisor,
    take_down,
)

FORK_TO_EXEC_SECONDS = 0.2
POLL_SECONDS = 0.02


def up(pattern_dir: Path) -> None:
    """Starts every service and waits until all are ready; on failure it stops everything."""
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
                # A signal that arrives between a process's fork and exec is lost.
                sleep(FORK_TO_EXEC_SECONDS)
                take_down(compose)
            raise
    print('see the logs with "make logs", stop it with "make down"')


def start(pattern_dir: Path, service: str) -> None:
    """Starts a stopped or killed service and waits until it is ready."""
    compose = running(pattern_dir)
    launch = launch_of(compose, compose.service(service))
    with only_one(compose):
        kill_silent(compose, {service: launch})
        if states(compose)[service] == {"RUNNING"}:
            print(f"{service} is already up")
            return
        wait_until_ready(compose, {service: launch}, [service])


def down(pattern_dir: Path, volumes: bool = False) -> None:
    """Stops every service and, if `volumes` is set, deletes the volumes."""
    compose = load(pattern_dir)
    with only_one(compose):
        show_death(compose)
        was_up = take_down(compose)
        if volumes:
            shutil.rmtree(state_dir(compose.pattern_dir) / "volumes", ignore_errors=True)
            for purpose in ("volumes", "scratch"):
                shutil.rmtree(temporary_dir(compose.pattern_dir, purpose), ignore_errors=True)
    print(f"{compose.name} is down" if was_up else f"{compose.name} is not up")


def stop(pattern_dir: Path, service: str) -> None:
    """Stops one service with its stop signal and grace period; the others keep running."""
    compose = running(pattern_dir)
    compose.service(service)
    with only_one(compose), supervisor(compose) as server:
        begin = monotonic()
        server.supervisor.stopProcessGroup(service)
        print(f"{service} stopped in {monotonic() - begin:.1f} s")


def kill(pattern_dir: Path, service: str) -> None:
    """Sends SIGKILL to every process of one service, which stays down until it is started."""
    compose = running(pattern_dir)
    compose.service(service)
    with only_one(compose):
        kill_processes(compose, service)
        print(f"{service} killed")


def kill_processes(compose: Compose, service: str) -> None:
    with supervisor(compose) as server:
        server.pattern.kill(service)
        while states(compose)[service] & {"STOPPING", "RUNNING", "STARTING"}:
            sleep(POLL_SECONDS)


def kill_silent(compose: Compose, launches: dict[str, Launch]) -> None:
    """Kills the services that run but do not answer, so that they can be started again."""
    for name in silent_services(compose, launches):
        print(f"{name} runs but does not answer its health check: restarting it", flush=True)
        kill_processes(compose, name)


def prepare_up(compose: Compose, launches: dict[str, Launch]) -> list[str]:
    """Starts the supervisor unless it already runs this plan; returns the services to start."""
    plan = plan_of(compose, launches)
    if is_up(compose):
        if read_plan(compose) == plan:
            kill_silent(compose, launches)
            return missing_services(compose)
        print("docker-compose.yml has changed: restarting everything")
    show_death(compose)
    take_down(compose)
    refuse_held_ports(compose)
    prepare(compose, launches, plan)
    start_supervisor(compose)
    return list(compose.services)


def refuse_held_ports(compose: Compose) -> None:
    for port in sorted(port for item in compose.services.values() for port in item.ports):
        with socket.socket() as probe:
            # Without this a port counts as taken for a minute after its connections were closed.
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
