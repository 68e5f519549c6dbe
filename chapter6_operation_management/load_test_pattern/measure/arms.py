"""Counts what an open and a closed loop see of a server that stalls or has too much to do."""

import asyncio
import os
import signal
import time
from contextlib import AbstractContextManager
from pathlib import Path

from tools.measure.load import Request, closed_loop
from tools.measure.server import Server, wait_until
from tools.measure.servers import run_uvicorn

from ..load.bodies import bodies
from .locusts import RECORDED, ended, locust

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
OPEN, CLOSED = (), ("ClosedLoop",)
STALL_RATE, STALL_SECONDS = 300, 1
OVERSIZED = 10
# Where there are two cores, the server has one, and the load generators have the other.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
SERVER, GENERATOR = {CORES[0]}, {CORES[-1]}


def api(cpus: set[int] = SERVER, /, **env: str) -> AbstractContextManager[Server]:
    return run_uvicorn(f"{PACKAGE}.app.main:app", cwd=ROOT, cpus=cpus, env=env)


def null() -> AbstractContextManager[Server]:
    return run_uvicorn(f"{PACKAGE}.measure.baselines:null", cwd=ROOT, cpus=SERVER)


def requests(*servers: Server) -> list[Request]:
    """Returns a request for each body, to the servers in turn."""
    return [
        Request(f"{servers[number % len(servers)].url}/predict", body)
        for number, body in enumerate(bodies())
    ]


def stall(loop: tuple[str, ...], seconds: float) -> dict[str, float]:
    """Suspends a server that does nothing while Locust loads it, and counts what Locust sees."""
    settings = {"rate": STALL_RATE, "steps": 1, "step_seconds": seconds}
    patient = {"objective_p99_ms": 2_000, "max_lag_p99_ms": 10_000}
    with (
        null() as server,
        locust(server.url, *RECORDED, *loop, **settings, **patient) as run,
    ):
        wait_until(run.has_begun, "the load to begin")
        time.sleep(0.5)
        os.kill(server.pid, signal.SIGSTOP)
        began = time.time()
        time.sleep(STALL_SECONDS)
        resumed = time.time()
        os.kill(server.pid, signal.SIGCONT)
    scheduled = [each for each in run.recorded if each.name == "from the schedule"]
    return {
        "due": sum(each.due <= resumed and began <= each.ended for each in scheduled),
        "seen": sum(each.due <= resumed <= each.ended for each in scheduled),
        "p99_ms": run.steps[0].p99_ms,
    }


def overload(
    loop: tuple[str, ...], rates: list[float], settings: dict[str, float], **limits: str
) -> tuple[int, int]:
    """Counts the rates, all above the capacity, at which Locust exits with 0.

    The second count is of answers to bodies that are larger than the shipped limit of the API.
    """
    with api(**limits) as server:
        large = Request(f"{server.url}/predict", bodies()[0] + b" " * 100_000)
        load = closed_loop(large, connections=1, count=OVERSIZED, deadline_seconds=30)
        answered = asyncio.run(load).statuses[200]
        runs = [ended(server.url, *loop, rate=rate, steps=1, **settings) for rate in rates]
    return sum(run.exit_code == 0 for run in runs), answered
