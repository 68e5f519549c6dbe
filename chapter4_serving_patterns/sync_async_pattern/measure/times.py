"""Measures how long first and second answers take, and what waiting costs Redis."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from tools.measure.load import Request, closed_loop, open_loop
from tools.measure.server import Server, wait_until

from ..app import jobs
from ..app.model import Model
from ..app.schema import FEATURES
from .answers import everysec, model_of, suspended
from .processes import Queue, run_api, run_workers

# Where there are two cores, the API, Redis and the load generator share one, and the workers have
# the other: in production these are different machines.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
FRONT, BACK = {CORES[0]}, {CORES[-1]}
RATE_PER_SECOND, ROUND_SECONDS = 50, 4
SECOND_ANSWERS = 20
CALLERS, WAIT_SECONDS = 100, 15


def row_ms(directory: Path) -> float:
    """Returns the milliseconds that a model takes for one row."""
    model = Model(directory, FEATURES)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        model.predict(model.sample)
        times.append((time.perf_counter() - began) * 1000)
    return sorted(times)[len(times) // 2]


def sample_of(directory: Path) -> dict[str, list[list[float]]]:
    return {"data": json.loads((directory / "metadata.json").read_bytes())["sample"]}


def first_p99_ms(api: Server, light: Path) -> float:
    request = Request(f"{api.url}/predict", json.dumps(sample_of(light)).encode())
    run = asyncio.run(
        open_loop(
            request,
            rate_per_second=RATE_PER_SECOND,
            seconds=ROUND_SECONDS,
            deadline_seconds=5,
        )
    )
    if run.statuses[200] != run.sent:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")
    return run.p99_ms


def second_ms(client: httpx.Client, light: Path) -> float:
    """Returns how long a caller waits for the second answer, from the request for the first."""
    job_id = None
    # Where Redis is slow there is no second answer, and none to be timed.
    while job_id is None:
        began = time.perf_counter()
        job_id = client.post("/predict", json=sample_of(light)).json()["job_id"]
    client.get(f"/job/{job_id}", params={"wait_seconds": 30}).raise_for_status()
    return (time.perf_counter() - began) * 1000


@contextmanager
def arm(light: Path, heavy: Path, directory: Path) -> Iterator[Callable[[], dict[str, float]]]:
    """Runs the pattern with a heavy model; yields a function that measures once."""
    with (
        everysec(directory, FRONT) as redis,
        run_api(redis.url, directory, FRONT, model_of(light)) as api,
        run_workers(2, redis.url, directory, cpus=BACK, env=model_of(heavy)) as workers,
        httpx.Client(base_url=api.url, timeout=60) as client,
    ):

        def measure() -> dict[str, float]:
            # Meanwhile the workers of the other arms are suspended.
            for worker in workers:
                worker.process.send_signal(signal.SIGCONT)
            first = first_p99_ms(api, light)
            wait_until(lambda: redis.client.xlen(jobs.STREAM) == 0, "an empty queue", 120)
            second = np.array([second_ms(client, light) for _ in range(SECOND_ANSWERS)])
            for worker in workers:
                worker.process.send_signal(signal.SIGSTOP)
            p50, p99 = np.percentile(second, [50, 99])
            return {"first_p99_ms": first, "second_p50_ms": p50, "second_p99_ms": p99}

        measure()
        yield measure


@contextmanager
def suspended_arm(light: Path, directory: Path) -> Iterator[Callable[[], dict[str, float]]]:
    """Runs the API with a Redis that hangs; yields a function that measures once."""
    with (
        everysec(directory, FRONT) as redis,
        run_api(redis.url, directory, FRONT, model_of(light)) as api,
    ):

        def measure() -> dict[str, float]:
            with suspended(redis):
                return {"first_p99_ms": first_p99_ms(api, light)}

        measure()
        yield measure


def waiting_calls(light: Path, directory: Path) -> float:
    """Returns how many calls Redis gets each second while 100 callers wait for their jobs."""
    # Every caller needs a job to wait for, however busy the machine is.
    env = model_of(light) | {"ENQUEUE_DEADLINE_SECONDS": "30"}
    with everysec(directory) as redis, run_api(redis.url, directory, env=env) as api:
        ids = [
            httpx.post(f"{api.url}/predict", json=sample_of(light)).json()["job_id"]
            for _ in range(CALLERS)
        ]
        requests = [Request(f"{api.url}/job/{each}?wait_seconds={WAIT_SECONDS}") for each in ids]
        before = calls(redis)
        load = closed_loop(requests, connections=CALLERS, count=CALLERS, deadline_seconds=60)
        run = asyncio.run(load)
        if run.statuses[200] != CALLERS:
            raise SystemExit(f"error: not every caller got the state: {run.statuses}")
        return (calls(redis) - before) / run.seconds


def calls(redis: Queue) -> int:
    """Counts the calls of the API: one for all who wait, and one for each who has waited."""
    found = redis.client.info("commandstats")
    names = ("cmdstat_mget", "cmdstat_eval")
    return sum(found[name]["calls"] for name in names if name in found)
