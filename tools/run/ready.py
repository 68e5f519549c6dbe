"""Starts services in dependency order and waits until all are ready."""

import math
import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep

from tools.read.compose import Compose
from tools.run.processes import MARK_VARIABLE
from tools.run.progress import last_line, progress
from tools.run.rewrite import Launch, state_dir
from tools.run.state import LocalError, last_lines, last_log, process_names
from tools.run.supervisor import raise_if_died, states, supervisor

PROBE_INTERVAL_SECONDS = 0.1
READY_DEADLINE_SECONDS = 60
POLL_SECONDS = 0.02


@dataclass
class Probe:
    """A running health check."""

    process: subprocess.Popen[bytes]
    started: float


def wait_until_ready(compose: Compose, launches: dict[str, Launch], names: list[str]) -> None:
    """Starts each service as soon as its dependencies allow, and returns when all are ready."""
    waiting = list(names)
    started: dict[str, float] = {}
    probes: dict[str, Probe] = {}
    try:
        with supervisor(compose) as server, progress() as show:
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
                if pending := {name: started[name] for name in waiting if name in started}:
                    show(progress_of(compose, pending))
                sleep(POLL_SECONDS)
        raise_if_died(compose)
    except LocalError:
        raise_if_died(compose)
        raise
    finally:
        for probe in probes.values():
            end_probe(probe)


def progress_of(compose: Compose, pending: dict[str, float]) -> str:
    """Says what is waited for, how long, and what it has logged last."""
    first = min(pending, key=lambda name: pending[name])
    log = (
        state_dir(compose.pattern_dir) / "log" / f"{process_names(compose.services[first])[0]}.log"
    )
    waited_seconds = monotonic() - pending[first]
    said = last_line(log)
    return f"waiting for {', '.join(pending)} ({waited_seconds:.0f} s){said and f': {said}'}"


def silent_services(compose: Compose, launches: dict[str, Launch]) -> list[str]:
    """Returns the services that run but have become unhealthy by Compose's definition."""
    running = {name for name, found in states(compose).items() if found == {"RUNNING"}}
    waiting = {
        name: launch.service.health.timeout_seconds * launch.service.health.retries
        for name, launch in launches.items()
        if launch.service.health and name in running - compose.one_shots()
    }
    silent = []
    begin = monotonic()
    probes: dict[str, Probe] = {}
    try:
        while waiting:
            found = states(compose)
            for name, deadline_seconds in tuple(waiting.items()):
                if is_ready(compose, launches[name], found[name], probes):
                    del waiting[name]
                elif monotonic() - begin > deadline_seconds:
                    del waiting[name]
                    silent.append(name)
            sleep(POLL_SECONDS)
    finally:
        for probe in probes.values():
            end_probe(probe)
    return silent


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
    # One-shot services have no deadline.
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
        f"health check output:\n{last_lines(said)}\n"
        f"last log lines:\n{last_log(compose, process_names(service)[0])}"
    )
