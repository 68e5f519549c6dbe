"""Measures the claim: a slow model does not delay acceptance, and kills lose no job."""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import numpy as np
from redis import ResponseError
from redis.asyncio import Redis

from tools.measure.load import Request, closed_loop, open_loop
from tools.measure.results import Results, quick_argument
from tools.measure.server import interleave, median_and_spread, wait_until
from tools.measure.servers import Process, run_uvicorn

from ..app import jobs
from ..app.model import Model
from ..app.schema import FEATURES
from ..train.artifact import write_artifact
from ..train.model import COPIES, train
from .baselines import POISON, POPPED_LIST
from .processes import PACKAGE, ROOT, Queue, run_api, run_workers

HERE = Path(__file__).parents[1]
CLAIM = "A slow model does not delay acceptance, and a killed process loses no accepted job."
# How many times slower than the shipped model the models are that a caller may wait for.
SLOWER = (1, 4, 14, 50)
RATE_PER_SECOND = 50
FRAGILE = (f"{PACKAGE}.measure.baselines",)
SEED = 0
# Where there are two cores, the API, Redis and the load generator share one, and the workers have
# the other: in production these are different machines.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
FRONT, BACK = {CORES[0]}, {CORES[-1]}

ROUNDS, ROUND_SECONDS = 7, 4
DRAINED, DRAINS = 20_000, 3


@dataclass(frozen=True)
class Size:
    """How many jobs there are, and how often workers and Redis are killed meanwhile."""

    jobs: int
    poison_jobs: int
    worker_kills: int
    redis_kills: int
    lease_seconds: float


FULL = Size(20_000, 2, 12, 3, 1)
QUICK = Size(300, 1, 1, 1, 0.5)


def row_ms(directory: Path) -> float:
    """Returns the milliseconds that the model takes for one row."""
    model = Model(directory, FEATURES)
    model.predict(model.sample)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        model.predict(model.sample)
        times.append((time.perf_counter() - began) * 1000)
    return median_and_spread(times).median


def sample_body(directory: Path) -> bytes:
    sample = json.loads((directory / "metadata.json").read_bytes())["sample"]
    return json.dumps({"data": sample}).encode()


# --- how fast a request is accepted ---------------------------------------------------------------


@contextmanager
def queue_arm(model: Path, directory: Path) -> Iterator[Callable[[], float]]:
    """Runs the pattern with a model; yields a function that measures the p99 of `/predict`."""
    directory.mkdir()
    env = {"MODEL_DIRECTORY": str(model)}
    with (
        Queue(directory, cpus=FRONT) as redis,
        run_api(redis.url, directory, cpus=FRONT, env=env) as api,
        run_workers(2, redis.url, directory, cpus=BACK, env=env) as workers,
    ):
        request = Request(f"{api.url}/predict", sample_body(model))

        def ack_p99_ms() -> float:
            # Meanwhile the workers of the other arm are suspended, with their jobs.
            signal_all(workers, signal.SIGCONT)
            run = asyncio.run(
                open_loop(
                    request,
                    rate_per_second=RATE_PER_SECOND,
                    seconds=ROUND_SECONDS,
                    deadline_seconds=5,
                )
            )
            signal_all(workers, signal.SIGSTOP)
            if run.statuses[202] != run.sent:
                raise SystemExit(f"error: not every request got a 202: {run.statuses} {run.errors}")
            return run.p99_ms

        ack_p99_ms()
        yield ack_p99_ms


@contextmanager
def synchronous_arm(model: Path, count: int) -> Iterator[Callable[[], float]]:
    """Runs a server whose only caller waits for the model; yields a function that measures p99."""
    with run_uvicorn(
        f"{PACKAGE}.measure.baselines:synchronous",
        cwd=ROOT,
        # A typical first server runs with uvicorn's own defaults.
        options=[],
        env={"MODEL_DIRECTORY": str(model)},
        cpus=BACK,
    ) as server:
        request = Request(f"{server.url}/predict", sample_body(model))

        def sync_p99_ms() -> float:
            load = closed_loop(request, connections=1, count=count, deadline_seconds=60)
            return asyncio.run(load).p99_ms

        yield sync_p99_ms


def signal_all(children: list[Process], number: signal.Signals) -> None:
    for child in children:
        child.process.send_signal(number)


# --- what is lost when processes are killed -------------------------------------------------------


def job_bodies(model: Path, size: Size) -> list[bytes]:
    """Returns the bodies of requests of one row, some of which kill their worker."""
    row = json.loads((model / "metadata.json").read_bytes())["sample"][0]
    bodies = [json.dumps({"data": [row]}).encode()] * size.jobs
    for number in range(size.poison_jobs):
        place = (number + 1) * size.jobs // (size.poison_jobs + 1)
        bodies[place] = json.dumps({"data": [[POISON, *row[1:]]]}).encode()
    return bodies


def submit(url: str, bodies: dict[str, bytes]) -> list[str]:
    """Sends requests with their keys until all are accepted, and returns the job IDs."""
    ids: dict[str, str] = {}
    while keys := [key for key in bodies if key not in ids]:
        requests = [
            Request(f"{url}/predict", bodies[key], {"idempotency-key": key}) for key in keys
        ]
        load = closed_loop(
            requests, connections=8, count=len(keys), deadline_seconds=5, keep_bodies=True
        )
        run = asyncio.run(load)
        for key, status, body in zip(keys, run.status_of, run.bodies or [], strict=True):
            if status == 202:
                ids[key] = json.loads(body)["job_id"]
    return list(ids.values())


def states_of(url: str, ids: list[str]) -> Counter[str]:
    """Requests every job and counts the states; an unknown job counts as `lost`."""
    requests = [Request(f"{url}/job/{job_id}") for job_id in ids]
    load = closed_loop(
        requests, connections=8, count=len(ids), deadline_seconds=5, keep_bodies=True
    )
    run = asyncio.run(load)
    return Counter(
        json.loads(body)["status"] if status == 200 else "lost"
        for status, body in zip(run.status_of, run.bodies or [], strict=True)
    )


def restart_dead(workers: list[Process], stopping: Event) -> None:
    """Restarts workers that have died, as Docker and Kubernetes do."""
    while not stopping.wait(0.05):
        for worker in workers:
            if not worker.is_alive():
                worker.start()


def kill_in_a_batch(redis: Queue, workers: list[Process]) -> None:
    """Kills the first worker that is found with jobs."""
    wait_until(lambda: any(dies_with_jobs(redis, worker) for worker in workers), "a batch", 60)


def dies_with_jobs(redis: Queue, worker: Process) -> bool:
    """Suspends a worker, and kills it if it has jobs."""
    process = worker.process
    mark = f"-{process.pid}-".encode()
    process.send_signal(signal.SIGSTOP)
    # There is no group before the first worker has created it.
    with suppress(ResponseError):
        consumers = redis.client.xinfo_consumers(jobs.STREAM, jobs.GROUP)
        if any(mark in consumer["name"] and consumer["pending"] for consumer in consumers):
            process.kill()
            process.wait()
            return True
    process.send_signal(signal.SIGCONT)
    return False


def kill_redis(redis: Queue) -> None:
    """Kills Redis and restarts it with its append-only file."""
    redis.kill()
    redis.start()


def count_lost(model: Path, directory: Path, size: Size) -> dict[str, int]:
    """Counts how jobs end while workers and Redis are killed and some jobs kill workers."""
    env = {
        "MODEL_DIRECTORY": str(model),
        "LEASE_SECONDS": str(size.lease_seconds),
        "MAX_PENDING_JOBS": str(size.jobs),
    }
    chance = np.random.default_rng(SEED)
    kills = ["worker"] * size.worker_kills + ["redis"] * size.redis_kills
    chance.shuffle(kills)
    bodies = {f"measure-{n}": body for n, body in enumerate(job_bodies(model, size))}
    keys = np.array_split(np.array(list(bodies)), len(kills))
    ids: list[str] = []
    stopping = Event()
    with (
        Queue(directory) as redis,
        run_api(redis.url, directory, env=env) as api,
        run_workers(2, redis.url, directory, FRAGILE, env=env) as workers,
        ThreadPoolExecutor() as threads,
    ):
        threads.submit(restart_dead, workers, stopping)
        try:
            # A kill in the middle of each part of the jobs.
            for victim, part in zip(kills, keys, strict=True):
                time.sleep(chance.uniform(0, 0.2))
                kill = partial(kill_redis, redis)
                if victim == "worker":
                    kill = partial(kill_in_a_batch, redis, workers)
                killed = threads.submit(kill)
                ids += submit(api.url, {str(key): bodies[str(key)] for key in part})
                killed.result()
            wait_until(lambda: redis.client.xlen(jobs.STREAM) == 0, "every job to be finished", 90)
        finally:
            stopping.set()
        states = states_of(api.url, ids)
        letters = [fields for _, fields in redis.client.xrange(jobs.DEAD)]
        counts = asyncio.run(counts_of(redis.url))
    return {
        "jobs": len(set(ids)),
        "lost": states["lost"],
        "done": states["done"],
        "failed": states["failed"],
        "poison_dead_lettered": sum(letter[b"deliveries"] == b"3" for letter in letters),
        "unaccounted": counts["accepted"] - counts["done"] - counts["failed"] - counts["pending"],
        "accepted_twice": counts["accepted"] - len(ids),
        "worker_kills": size.worker_kills,
        "redis_kills": size.redis_kills,
    }


async def counts_of(redis_url: str) -> dict[str, int]:
    async with Redis.from_url(redis_url) as redis:
        return await jobs.count(redis)


def count_lost_by_popping(model: Path, directory: Path, size: Size) -> int:
    """Counts the jobs lost by workers that pop from a list and are killed as often."""
    chance = np.random.default_rng(SEED)
    bodies = [json.loads(body)["data"][0] for body in job_bodies(model, size)]
    texts = [json.dumps({"id": number, "row": row}) for number, row in enumerate(bodies)]
    parts = [texts[part :: size.worker_kills] for part in range(size.worker_kills)]
    stopping = Event()
    with (
        Queue(directory) as redis,
        run_workers(
            2, redis.url, directory, (*FRAGILE, "pop"), env={"MODEL_DIRECTORY": str(model)}
        ) as workers,
        ThreadPoolExecutor() as threads,
    ):
        threads.submit(restart_dead, workers, stopping)
        try:
            for part in parts:
                redis.client.rpush(POPPED_LIST, *part)
                half = len(part) // 2
                wait_until(partial(is_shorter, redis, half), "half of the list to be popped", 60)
                wait_until(partial(kill_one, workers, chance), "a worker to kill", 60)
            wait_until(partial(is_shorter, redis, 1), "an empty list", 60)
            wait_until_steady(redis.client.dbsize)
        finally:
            stopping.set()
        return size.jobs - int(redis.client.dbsize())


def kill_one(workers: list[Process], chance: np.random.Generator) -> bool:
    """Kills a worker, unless a job has just killed the last one."""
    alive = [worker for worker in workers if worker.is_alive()]
    if alive:
        alive[chance.integers(len(alive))].process.kill()
    return bool(alive)


def is_shorter(redis: Queue, length: int) -> bool:
    return bool(redis.client.llen(POPPED_LIST) < length)


def wait_until_steady(value: Callable[[], int]) -> None:
    """Waits until a value has not changed for a second."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 1:
        time.sleep(0.05)
        if value() != last:
            last, since = value(), time.monotonic()


# --- how fast a queue is drained ------------------------------------------------------------------


def jobs_per_second(model: Path, parent: Path, batch_jobs: int, count: int) -> float:
    """Returns how many jobs per second two workers finish from a queue filled beforehand."""
    with TemporaryDirectory(dir=parent) as name:
        directory = Path(name)
        env = {
            "MODEL_DIRECTORY": str(model),
            "LEASE_SECONDS": "60",
            "BATCH_JOBS": str(batch_jobs),
        }
        with (
            Queue(directory) as redis,
            run_workers(2, redis.url, directory, env=env) as workers,
        ):
            signal_all(workers, signal.SIGSTOP)
            row = json.loads((model / "metadata.json").read_bytes())["sample"]
            asyncio.run(fill(redis.url, row, count))
            began = time.perf_counter()
            signal_all(workers, signal.SIGCONT)
            wait_until(lambda: redis.client.xlen(jobs.STREAM) == 0, "an empty queue", 120)
            return count / (time.perf_counter() - began)


async def fill(redis_url: str, rows: list[list[float]], count: int) -> None:
    """Puts `count` jobs into the queue."""
    async with Redis.from_url(redis_url) as redis:
        for _ in range(count // 100):
            await asyncio.gather(
                *(jobs.enqueue(redis, "probabilities", rows, None, count) for _ in range(100))
            )


# --- all of it ------------------------------------------------------------------------------------


def claim_holds(counts: dict[str, int], poison_jobs: int = FULL.poison_jobs) -> bool:
    """True if no job is lost or unaccounted for, and exactly the poison jobs are given up."""
    return (
        counts["lost"] == counts["unaccounted"] == counts["accepted_twice"] == 0
        and counts["failed"] == counts["poison_dead_lettered"] == poison_jobs
        and counts["done"] == counts["jobs"] - poison_jobs
    )


def measure_acceptance(parent: Path) -> dict[str, list[float]]:
    """Measures how fast requests are accepted and answered while the model gets slower."""
    models = [parent / f"times_{slower}" for slower in SLOWER]
    with ExitStack() as stack:
        arms: dict[str, Callable[[], float]] = {}
        for slower, model in zip(SLOWER, models, strict=True):
            write_artifact(model, *train(slower * COPIES))
            queue = queue_arm(model, parent / f"queue_{slower}")
            waiting = synchronous_arm(model, max(2, 10 // slower))
            arms[f"ack {slower}"] = stack.enter_context(queue)
            arms[f"sync {slower}"] = stack.enter_context(waiting)
        measured = interleave(arms, ROUNDS)
    return {"model_ms": [row_ms(model) for model in models]} | {
        f"{arm}_p99_ms": [
            median_and_spread(measured[f"{arm} {slower}"]).median for slower in SLOWER
        ]
        for arm in ("ack", "sync")
    }


def measure_drains(light: Path, parent: Path) -> dict[str, float]:
    """Measures how fast a queue is drained, in batches and one job at a time."""
    drain = partial(jobs_per_second, light, parent)
    measured = interleave(
        {
            "jobs_per_second": partial(drain, 32, DRAINED),
            "single_jobs_per_second": partial(drain, 1, DRAINED // 4),
        },
        DRAINS,
    )
    return {name: median_and_spread(values).median for name, values in measured.items()}


def figures_of(series: dict[str, list[float]], drains: dict[str, float]) -> dict[str, float]:
    """Returns the figures of the fastest and the slowest model, and how a queue is drained."""
    ack, sync, model = (series[name] for name in ("ack_p99_ms", "sync_p99_ms", "model_ms"))
    return {
        "ack_p99_ms": ack[0],
        "ack_p99_slow_ms": ack[-1],
        "sync_p99_ms": sync[0],
        "sync_p99_slow_ms": sync[-1],
        **drains,
        "model_ms": model[0],
        "slow_model_ms": model[-1],
        "ack_p99_ratio": ack[-1] / ack[0],
        "sync_p99_ratio": sync[-1] / sync[0],
        "batched_ratio": drains["jobs_per_second"] / drains["single_jobs_per_second"],
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    size = QUICK if arguments.quick else FULL
    with TemporaryDirectory() as name:
        parent = Path(name)
        light = parent / "light"
        write_artifact(light, *train(1))
        counts = count_lost(light, parent / "killed", size)
        control = {"lost": count_lost_by_popping(light, parent / "popped", size)}
        series = {} if arguments.quick else measure_acceptance(parent)
        figures = {} if arguments.quick else figures_of(series, measure_drains(light, parent))
    targets: dict[str, tuple[str, float]] = {
        "lost": ("==", 0),
        "poison_dead_lettered": ("==", size.poison_jobs),
        "unaccounted": ("==", 0),
        "ack_p99_ratio": ("<=", 1.5),
        "jobs_per_second": (">=", 3_000),
    }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        figures=figures,
        control=control,
        targets={name: target for name, target in targets.items() if name in counts | figures},
        series=series,
        # A wide margin: with the slowest model, a synchronous response takes over 20 times as long.
        holds=claim_holds(counts, size.poison_jobs)
        and control["lost"] > 0
        and (arguments.quick or figures["ack_p99_ratio"] < 5),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
