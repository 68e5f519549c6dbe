"""Measures the cost of a prediction, for this server and for others that differ in one thing."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import uvloop

from tools.measure.load import Request, Run, closed_loop, open_loop
from tools.measure.server import Server, interleave, median_and_spread, serve
from tools.measure.servers import guarded
from tools.run.ports import free_port

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
QUIET = ["--no-access-log"]
GUARDED = [*QUIET, *guarded(f"{PACKAGE}.app")]
OURS = ("app.main:app", GUARDED)
CARELESS = ("measure.baselines:careless", QUIET)
# All run with uvicorn's own defaults; each arm changes one thing compared with the one before.
ARMS: dict[str, tuple[str, list[str]]] = {
    "plain": ("measure.baselines:plain", []),
    "no access log": ("measure.baselines:plain", QUIET),
    "async def": ("measure.baselines:plain_async", QUIET),
    "no JsonRoute": ("measure.baselines:without_json_route", GUARDED),
    "ours": OURS,
    # The floor: a FastAPI route that returns a constant.
    "noop": ("measure.baselines:noop", QUIET),
}
ONE_ROW = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
ROUNDS, CONNECTIONS, REQUESTS = 15, 16, 4_000
# Latencies are compared at this share of the plain server's capacity.
LOAD, SECONDS = 0.7, 4
# Where there are two cores, the server has one and the load generator the other.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]

Rounds = dict[str, list[dict[str, float]]]


@contextmanager
def server(app: str, options: list[str]) -> Iterator[Server]:
    """Starts a server with uvicorn on a core of its own."""
    port = free_port()
    with serve(
        [sys.executable, "-m", "uvicorn", f"{PACKAGE}.{app}", "--port", str(port), *options],
        cwd=ROOT,
        ready_url=f"http://127.0.0.1:{port}/ready",
        port=port,
        cpus={CORES[0]},
    ) as running:
        yield running


def answered(run: Run) -> Run:
    """Returns the run if every request got a 200."""
    if run.statuses[200] != run.sent:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")
    return run


def cost(running: Server) -> dict[str, float]:
    """Returns the server's CPU time per prediction, and its predictions per second."""
    request, before = Request(f"{running.url}/predict", ONE_ROW), running.cpu_seconds()
    load = closed_loop(request, connections=CONNECTIONS, count=REQUESTS, deadline_seconds=30)
    run = answered(uvloop.run(load))
    cpu_us = (running.cpu_seconds() - before) / REQUESTS * 1e6
    return {"cpu_us": cpu_us, "per_second": run.per_second}


def latency(running: Server, rate_per_second: float) -> dict[str, float]:
    """Returns the 99th percentile of the latency when requests arrive at random."""
    load = open_loop(
        Request(f"{running.url}/predict", ONE_ROW),
        rate_per_second=rate_per_second,
        seconds=SECONDS,
        deadline_seconds=SECONDS,
        poisson_seed=0,
    )
    run = answered(uvloop.run(load))
    return {"p99_ms": run.p99_ms, "lag_p99_ms": run.lag_p99_ms}


def median(rounds: Rounds, arm: str, figure: str) -> float:
    return median_and_spread([values[figure] for values in rounds[arm]]).median


def ratio(rounds: Rounds, figure: str, other: str) -> float:
    """Returns the median of the ratios of each round: a noisy moment spoils only one of them."""
    pairs = zip(rounds["ours"], rounds[other], strict=True)
    return median_and_spread([mine[figure] / theirs[figure] for mine, theirs in pairs]).median


def measure_costs(servers: dict[str, Server]) -> dict[str, float]:
    """Measures what each arm costs, and the latency of two of them."""
    for running in servers.values():
        cost(running)
    costs = interleave({name: partial(cost, arm) for name, arm in servers.items()}, ROUNDS)
    rate = LOAD * median(costs, "plain", "per_second")
    arms = {name: partial(latency, servers[name], rate) for name in ("plain", "ours")}
    delays = interleave(arms, ROUNDS)
    return {
        "cpu_us": median(costs, "ours", "cpu_us"),
        "plain_cpu_us": median(costs, "plain", "cpu_us"),
        "quiet_cpu_us": median(costs, "no access log", "cpu_us"),
        "async_cpu_us": median(costs, "async def", "cpu_us"),
        "without_json_route_cpu_us": median(costs, "no JsonRoute", "cpu_us"),
        "noop_cpu_us": median(costs, "noop", "cpu_us"),
        "cpu_ratio_to_plain": ratio(costs, "cpu_us", "plain"),
        "cpu_ratio_to_noop": ratio(costs, "cpu_us", "noop"),
        "p99_ms": median(delays, "ours", "p99_ms"),
        "p99_ratio_to_plain": ratio(delays, "p99_ms", "plain"),
        "generator_lag_p99_ms": median(delays, "ours", "lag_p99_ms"),
    }
