"""Counts what the claim says, with each mechanism on and off."""

import asyncio
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from redis import Redis

from tools.measure.load import Request, Run, closed_loop
from tools.measure.server import Server, wait_until
from tools.measure.servers import RedisServer

from ..app.cache import Cache, State
from ..app.model import Model
from ..app.schema import FEATURES
from ..app.settings import Settings
from ..train.artifact import write_artifact
from ..train.model import LABELS, draw_warps, export, fit, load
from .processes import PATIENT, body_of, counts_of, run_api, run_redis, switch

ROWS_SENT, DISTINCT, ROWS_PER_REQUEST = 2_000, 100, 4
AT_ONCE = 20
PARALLEL = 200
WITHOUT_REDIS = 200
BOUND_BYTES, ENTRY_BYTES = 2 * 1024**2, 4096
SEED = 0
# What the API needs to know about a model.
METADATA = {"labels": LABELS, "input": {"name": "X"}, "output": {"name": "probabilities"}}


class Bench(NamedTuple):
    """Redis, two replicas of the API, and two versions of the model."""

    directory: Path
    redis: RedisServer
    replicas: list[Server]
    models: list[Path]
    rows: list[list[float]]

    def switch(self, off: str = "", **settings: object) -> None:
        """Empties Redis, and switches a mechanism off in both replicas."""
        with Redis.from_url(self.redis.url) as client:
            client.flushall()
        for replica in self.replicas:
            switch(replica, self.models[0], off, **settings)

    def send(
        self,
        batches: list[list[list[float]]],
        *,
        connections: int,
        deadline_seconds: float = 60,
        path: str = "/predict",
    ) -> Run:
        """Sends requests to both replicas in turn."""
        requests = [
            Request(f"{self.replicas[number % 2].url}{path}", body_of(rows))
            for number, rows in enumerate(batches)
        ]
        load = closed_loop(
            requests,
            connections=connections,
            count=len(requests),
            deadline_seconds=deadline_seconds,
            keep_bodies=True,
        )
        return asyncio.run(load)

    def computed(self) -> list[int]:
        """Returns how many rows each replica has computed since the last switch."""
        wait_until(
            lambda: not any(counts_of(replica)["unawaited"] for replica in self.replicas),
            "computations that nobody waits for",
        )
        return [counts_of(replica)["computed"] for replica in self.replicas]


def write_models(directory: Path) -> list[Path]:
    """Trains two versions of a light model, which answer every row differently."""
    models = [directory / "v1", directory / "v2"]
    x_train, y_train, x_test, _ = load()
    for number, model in enumerate(models):
        part = slice(300 * number, 300 * (number + 1))
        pipeline = fit(x_train[part], y_train[part])
        metadata = {**METADATA, "sample": x_test[:1].tolist()}
        write_artifact(model, export(pipeline, draw_warps(1)), metadata)
    return models


@contextmanager
def bench(directory: Path) -> Iterator[Bench]:
    """Trains the models and starts everything."""
    models = write_models(directory)
    rows: list[list[float]] = load()[2].tolist()
    with (
        run_redis(directory / "redis") as redis,
        run_api(directory, redis, models[0], env=PATIENT) as first,
        run_api(directory, redis, models[0], env=PATIENT) as second,
    ):
        yield Bench(directory, redis, [first, second], models, rows)


def rows_computed(bench: Bench, path: str = "/predict") -> int:
    """Sends rows of which some come often and most rarely; returns how many are computed."""
    bench.switch()
    chance = np.random.default_rng(SEED)
    shares = 1 / np.arange(1, DISTINCT + 1)
    drawn = chance.choice(DISTINCT, ROWS_SENT - DISTINCT, p=shares / shares.sum())
    order = chance.permutation([*range(DISTINCT), *drawn]).reshape(-1, ROWS_PER_REQUEST)
    batches = [[bench.rows[index] for index in part] for part in order]
    run = bench.send(batches, connections=8, path=path)
    require_answers(run)
    return sum(bench.computed())


def computed_at_once(bench: Bench, off: str = "") -> tuple[int, int]:
    """Sends one row many times at once, before the model computes it for the first time.

    Returns how often it is computed, and in how many replicas.
    """
    hold = bench.directory / "hold"
    hold.touch()
    bench.switch(off, hold=hold)

    def all_have_looked_up() -> bool:
        return all(counts_of(replica)["looked_up"] == AT_ONCE for replica in bench.replicas)

    batches = [[bench.rows[0]]] * 2 * AT_ONCE
    with ThreadPoolExecutor() as threads:
        sent = threads.submit(bench.send, batches, connections=len(batches))
        try:
            wait_until(all_have_looked_up, "every call to look up")
        finally:
            hold.unlink()
        require_answers(sent.result())
    computed = bench.computed()
    return sum(computed), sum(count > 0 for count in computed)


def old_answers(bench: Bench, off: str = "") -> int:
    """Fills the cache, switches to another model, and counts the answers of the old one."""
    bench.switch(off)
    rows = bench.rows[:DISTINCT]
    require_answers(bench.send([[row] for row in rows], connections=8))
    for replica in bench.replicas:
        switch(replica, bench.models[1], off)
    run = bench.send([[row] for row in rows], connections=8)
    require_answers(run)
    answers = np.array([json.loads(body)["prediction"][0] for body in run.bodies or []])
    old, new = (Model(model, FEATURES).predict(rows) for model in bench.models)
    is_old = abs(answers - old).sum(axis=1) < abs(answers - new).sum(axis=1)
    return int(is_old.sum())


def computed_in_parallel(bench: Bench, lookup: str = "parallel") -> int:
    """Sends every row twice, one after another, and returns how many are computed."""
    bench.switch(lookup=lookup)
    batches = [[row] for row in bench.rows[: PARALLEL // 2]] * 2
    require_answers(bench.send(batches, connections=1))
    return sum(bench.computed())


def failed_without_redis(
    bench: Bench, deadline_seconds: float, *, connections: int = 8, patience_seconds: float = 60
) -> int:
    """Counts the requests that fail while Redis is killed, and then while it is suspended."""
    batches = [[row] for row in bench.rows[:WITHOUT_REDIS]]
    bench.switch(deadline_seconds=deadline_seconds)
    bench.redis.kill()
    killed = bench.send(batches, connections=connections)
    bench.redis.start()
    bench.switch(deadline_seconds=deadline_seconds)
    bench.redis.process.send_signal(signal.SIGSTOP)
    try:
        suspended = bench.send(batches, connections=connections, deadline_seconds=patience_seconds)
    finally:
        bench.redis.process.send_signal(signal.SIGCONT)
    return sum(run.sent - run.statuses[200] for run in (killed, suspended))


def fill(directory: Path, max_bytes: int = BOUND_BYTES) -> dict[str, int]:
    """Stores three times the bound; returns the bytes above it, and how many values are evicted."""
    with run_redis(directory, "--maxmemory", str(max_bytes)) as redis:
        state = asyncio.run(store_much(redis.url))
    above = max(0, (state.bytes or 0) - BOUND_BYTES)
    return {"bytes_above_bound": above, "evicted": state.evicted or 0}


async def store_much(redis_url: str) -> State:
    cache = Cache(
        redis_url,
        max_connections=1,
        deadline_seconds=60,
        lease_seconds=60,
        ttl_seconds=3_600,
        value_bytes=ENTRY_BYTES,
    )

    async def compute(keys: list[bytes]) -> list[bytes]:
        return [bytes(ENTRY_BYTES)] * len(keys)

    numbers = range(3 * BOUND_BYTES // ENTRY_BYTES)
    for start in numbers[::64]:
        await cache.get_many([b"%d" % number for number in range(start, start + 64)], compute)
    state = await cache.state()
    await cache.redis.aclose()
    return state


def require_answers(run: Run) -> None:
    if run.statuses[200] != run.sent:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")


def count(directory: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Returns all counts, and those with a mechanism off."""
    shipped: float = Settings.model_fields["redis_deadline_seconds"].default
    bounded, unbounded = fill(directory / "bounded"), fill(directory / "unbounded", 0)
    with bench(directory) as both:
        computed, replicas = computed_at_once(both)
        counts = {
            "rows_sent": ROWS_SENT,
            "distinct": DISTINCT,
            "rows_computed": rows_computed(both),
            "computed_at_once": computed,
            "replicas_computing_at_once": replicas,
            "old_answers": old_answers(both),
            "sent_parallel": PARALLEL,
            "computed_parallel": computed_in_parallel(both),
            "failed_without_redis": failed_without_redis(both, shipped),
            **bounded,
        }
        control = {
            "rows_computed": rows_computed(both, "/uncached"),
            "computed_at_once": computed_at_once(both, "single flight")[0],
            "replicas_computing_at_once": computed_at_once(both, "lease")[1],
            "old_answers": old_answers(both, "version"),
            "computed_parallel": computed_in_parallel(both, "sequential"),
            # Nothing is answered while Redis is suspended, so waiting for longer changes nothing.
            "failed_without_redis": failed_without_redis(
                both, 3_600, connections=WITHOUT_REDIS, patience_seconds=1
            ),
            "bytes_above_bound": unbounded["bytes_above_bound"],
        }
    return counts, control


def claim_holds(counts: dict[str, int]) -> bool:
    """True if every distinct row was computed once, and no answer was wrong or missing."""
    zero = ("old_answers", "failed_without_redis", "bytes_above_bound")
    return (
        counts["rows_computed"] == counts["distinct"]
        and counts["computed_at_once"] == counts["replicas_computing_at_once"] == 1
        and counts["computed_parallel"] == counts["sent_parallel"]
        and counts["evicted"] > 0
        and all(counts[name] == 0 for name in zero)
    )
