"""Starts a pattern or restarts one of its services."""

import errno
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep

from tools.read.compose import Compose, load
from tools.run.plan import plan_of, prepare, start_supervisor
from tools.run.processes import listener_of
from tools.run.ready import wait_until_ready
from tools.run.rewrite import Launch, launch_of
from tools.run.state import LocalError, is_up, only_one, read_plan
from tools.run.supervisor import missing_services, running, states
from tools.run.takedown import show_death, take_down

FORK_TO_EXEC_SECONDS = 0.2


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
        if states(compose)[service] == {"RUNNING"}:
            print(f"{service} is already up")
            return
        wait_until_ready(compose, {service: launch}, [service])


def prepare_up(compose: Compose, launches: dict[str, Launch]) -> list[str]:
    """Starts the supervisor unless it already runs this plan; returns the services to start."""
    plan = plan_of(compose, launches)
    if is_up(compose):
        if read_plan(compose) == plan:
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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignores a second Ctrl-C, which would leave some services running."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
