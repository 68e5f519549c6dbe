"""Measures what the API can answer, and what load generators can send and cost."""

import asyncio
import sys
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from tools.measure.load import Run, closed_loop, open_loop
from tools.measure.server import Server, interleave, median_and_spread

from .arms import CORES, api, requests
from .locusts import Locust, ended

CALLERS = 10
# The rates that each can send, and what it has to send to outweigh its start.
RATE, SECONDS = 800, 30
STEPS, HIGHEST_RATE = 8, 1_600


def capacity(*servers: Server) -> float:
    """Returns the throughput with as many callers for each server as Locust has connections."""
    callers = CALLERS * len(servers)
    load = closed_loop(
        requests(*servers), connections=callers, count=300 * len(servers), deadline_seconds=30
    )
    run: Run = asyncio.run(load)
    return run.statuses[200] / run.seconds


def two_processes_ratio() -> float:
    """Returns the throughput of two processes, relative to one, on all cores."""
    cores = set(CORES)
    with api(cores) as one, api(cores) as other:
        arms = {"one": partial(capacity, one), "two": partial(capacity, one, other)}
        measured = interleave(arms, 3)
    return median_and_spread(measured["two"]).median / median_and_spread(measured["one"]).median


def generator(server: Server) -> dict[str, float]:
    """Raises the rate at a server that does nothing until Locust itself is late."""
    run = ended(server.url, rate=HIGHEST_RATE, steps=STEPS, step_seconds=6)
    if not run.held:
        sys.exit(f"error: measure on a quiet machine, {run.steps[-1]}")
    best = run.held[-1]
    return {"generator_per_second": best.rate, "generator_lag_p99_ms": best.lag_p99_ms}


def cpu_us_per_request(server: Server) -> dict[str, float]:
    """Returns the CPU time of a request, with that of the start for Locust."""
    shipped = ended(server.url, rate=RATE, steps=1, step_seconds=SECONDS)
    options = ("--users", "10", "--spawn-rate", "10", "--run-time", f"{SECONDS}s")
    usual = ended(server.url, "-f", "measure/http_user.py", *options)
    open_load = open_loop(
        requests(server), rate_per_second=RATE, seconds=5, deadline_seconds=5, poisson_seed=0
    )
    closed_load = closed_loop(requests(server), connections=10, count=5 * RATE, deadline_seconds=5)
    return {
        "locust_cpu_us_per_request": of_locust(shipped, "as a caller sees it"),
        "http_user_cpu_us_per_request": of_locust(usual, "/predict"),
        "reference_open_cpu_us_per_request": of_this(open_load),
        "reference_closed_cpu_us_per_request": of_this(closed_load),
    }


def of_locust(run: Locust, name: str) -> float:
    return 1e6 * run.cpu_seconds / run.requests[name]


def of_this(load: Coroutine[Any, Any, Run]) -> float:
    began = time.process_time()
    sent = asyncio.run(load).sent
    return 1e6 * (time.process_time() - began) / sent
