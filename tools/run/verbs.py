"""Starts and stops a pattern or one of its services."""

import shutil
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from psutil import Process

from tools.read.compose import Compose, load
from tools.run.interrupts import uninterrupted
from tools.run.plan import launches_in, prepare, start_supervisor, stated
from tools.run.ports import choose, refuse_taken
from tools.run.processes import all_of, is_suspended, kill_all, pause_all, unpause_all
from tools.run.ready import silent_services, wait_until_ready
from tools.run.rewrite import (
    Launch,
    addressed_without_port,
    launch_of,
    state_dir,
    temporary_dir,
)
from tools.run.state import (
    LocalError,
    is_run_of,
    is_up,
    only_one,
    process_names,
    read_plan,
)
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
        if not is_up(compose):
            show_death(compose)
            take_down(compose)
        plan = read_plan(compose)
        is_same = plan.get("stated") == stated(compose)
        # What fails here leaves a pattern that is up as it is.
        launches, ports = ({}, {}) if is_same else launches_anew(compose, plan)
        try:
            if is_same:
                launches = launches_in(plan, compose)
                stop_paused(compose, launches)
                kill_silent(compose, launches)
                missing = missing_services(compose)
            else:
                if plan:
                    print("what docker-compose.yml says has changed: restarting everything")
                    take_down(compose)
                prepare(compose, launches, ports)
                start_supervisor(compose)
                missing = list(compose.of_up())
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


def launches_anew(
    compose: Compose, plan: dict[str, Any]
) -> tuple[dict[str, Launch], dict[int, int]]:
    """Returns how to start the services, and their ports, of which none is taken by others."""
    own = {*plan.get("ports", {}).values()}
    ports = choose(compose, own, addressed_without_port(compose))
    refuse_taken(compose.pattern_dir, [port for port in ports.values() if port not in own])
    services = compose.of_up().items()
    return {name: launch_of(compose, service, ports) for name, service in services}, ports


def start(pattern_dir: Path, service: str) -> None:
    """Starts a stopped or killed service and waits until it is ready."""
    compose = running(pattern_dir, service)
    with only_one(compose):
        launch = launches_in(read_plan(compose), compose)[service]
        stop_paused(compose, {service: launch})
        kill_silent(compose, {service: launch})
        if states(compose)[service] == {"RUNNING"}:
            print(f"{service} is already up")
            return
        wait_until_ready(compose, {service: launch}, [service])


def restart(pattern_dir: Path, service: str) -> None:
    """Stops one service, starts it again and waits until it is ready."""
    stop(pattern_dir, service)
    start(pattern_dir, service)


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
    compose = running(pattern_dir, service)
    with only_one(compose), supervisor(compose) as server:
        begin = monotonic()
        # A paused process does not receive its stop signal.
        unpause_all(processes_of(compose, service))
        server.supervisor.stopProcessGroup(service)
        print(f"{service} stopped in {monotonic() - begin:.1f} s")


def kill(pattern_dir: Path, service: str) -> None:
    """Sends SIGKILL to every process of one service, which stays down until it is started."""
    compose = running(pattern_dir)
    is_job = compose.service(service).is_job
    with only_one(compose):
        if is_job:
            kill_all(all_of(state_dir(compose.pattern_dir), partial(is_run_of, service)))
        else:
            kill_processes(compose, service)
        print(f"{service} killed")


def pause(pattern_dir: Path, service: str) -> None:
    """Suspends every process of one service, which then hangs: it accepts, but does not answer."""
    compose = running(pattern_dir, service)
    with only_one(compose):
        found = processes_of(compose, service)
        if not found:
            print(f"{service} is not running")
        elif all(map(is_suspended, found)):
            raise LocalError(f"{service} is already paused: make unpause lets it go on")
        elif not pause_all(lambda: processes_of(compose, service)):
            raise LocalError(f"{service} cannot be paused: it keeps starting processes")
        else:
            print(f"{service} paused")


def unpause(pattern_dir: Path, service: str) -> None:
    """Lets every process of a paused service go on."""
    compose = running(pattern_dir, service)
    with only_one(compose):
        found = processes_of(compose, service)
        if not found:
            print(f"{service} is not running")
        elif not any(map(is_suspended, found)):
            raise LocalError(f"{service} is not paused")
        else:
            unpause_all(found)
            print(f"{service} goes on")


def processes_of(compose: Compose, service: str) -> list[Process]:
    names = process_names(compose.services[service])
    return all_of(state_dir(compose.pattern_dir), names.__contains__)


def kill_processes(compose: Compose, service: str) -> None:
    with supervisor(compose) as server:
        server.pattern.kill(service)
        while states(compose)[service] & {"STOPPING", "RUNNING", "STARTING"}:
            sleep(POLL_SECONDS)


def stop_paused(compose: Compose, launches: dict[str, Launch]) -> None:
    """Stops the services that are paused, so that they can be started again."""
    for name in launches:
        paused = list(filter(is_suspended, processes_of(compose, name)))
        if paused:
            print(f"{name} is paused: restarting it", flush=True)
            unpause_all(paused)
            with supervisor(compose) as server:
                server.supervisor.stopProcessGroup(name)


def kill_silent(compose: Compose, launches: dict[str, Launch]) -> None:
    """Kills the services that run but do not answer, so that they can be started again."""
    for name in silent_services(compose, launches):
        print(f"{name} runs but does not answer its health check: restarting it", flush=True)
        kill_processes(compose, name)
