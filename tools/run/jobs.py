"""Runs a job, a service that `up` does not start, in the foreground."""

import fcntl
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from tools.read.compose import Compose, load
from tools.run.interrupts import SIGNALS
from tools.run.plan import make_folders
from tools.run.processes import MARK_VARIABLE, all_of, kill_all, record
from tools.run.rewrite import launch_of, state_dir
from tools.run.state import LocalError, only_one, read_plan, run_name
from tools.run.supervisor import running

POLL_SECONDS = 0.05


def run(pattern_dir: Path, service: str) -> int:
    """Runs a job, passes signals on to it, and returns its exit code as a shell does."""
    compose = load(pattern_dir)
    if not compose.service(service).is_job:
        jobs = ", ".join(compose.jobs()) or "none"
        raise LocalError(f"make up starts {service}; services that run on demand: {jobs}")
    state, name = state_dir(compose.pattern_dir), run_name(service)
    try:
        with received() as signals:
            # Other jobs may start at the same time, but the pattern may not stop.
            with only_one(compose, fcntl.LOCK_SH):
                job = started(running(pattern_dir), service, name)
            code = exit_code(job, signals, compose.services[service].stop_grace_seconds)
    finally:
        # As when a container ends.
        kill_all(all_of(state, lambda found: found == name))
        (state / "pids" / name).unlink(missing_ok=True)
    return code


@contextmanager
def received() -> Iterator[list[int]]:
    """Yields the signals that arrive, which do nothing else."""
    signals: list[int] = []
    before = {n: signal.signal(n, lambda number, _: signals.append(number)) for n in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def started(compose: Compose, service: str, name: str) -> subprocess.Popen[bytes]:
    ports = {int(stated): port for stated, port in read_plan(compose)["ports"].items()}
    launch = launch_of(compose, compose.services[service], ports)
    program, *arguments = launch.command
    path = shutil.which(program, path=launch.environment["PATH"])
    if not path:
        raise LocalError(f'service "{service}": {program} is not installed')
    make_folders(compose, launch)
    state = state_dir(compose.pattern_dir)
    job = subprocess.Popen(
        [path, *arguments],
        cwd=launch.directory,
        env={**launch.environment, MARK_VARIABLE: f"{state}#{name}"},
        stdin=subprocess.DEVNULL,
        # Ctrl-C reaches this program, which passes it on, so that the job receives it once. The job
        # still writes to the terminal, also from the background.
        start_new_session=True,
    )
    record(state / "pids" / name, job.pid)
    return job


def exit_code(job: subprocess.Popen[bytes], signals: list[int], grace_seconds: float) -> int:
    """Waits until a job ends; after a signal it has the grace period of its service."""
    deadline = None
    while job.poll() is None:
        while signals:
            job.send_signal(signals.pop(0))
            deadline = deadline or monotonic() + grace_seconds
        if deadline and monotonic() > deadline:
            job.kill()
        with suppress(subprocess.TimeoutExpired):
            job.wait(POLL_SECONDS)
    return 128 - job.returncode if job.returncode < 0 else job.returncode
