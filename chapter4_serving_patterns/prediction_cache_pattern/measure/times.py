"""Measures how long a hit, a miss and a request without a cache take."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.measure.load import Request, Run, closed_loop, open_loop
from tools.measure.server import Server, interleave, median_and_spread
from tools.measure.servers import RedisServer

from ..app.schema import FEATURES, HIGHEST
from .counts import require_answers, write_models
from .processes import HERE, body_of, run_api, run_redis, switch

# Where there are two cores, the API has one, and Redis and the load generator share the other.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
FRONT, BACK = {CORES[0]}, {CORES[-1]}
HIT_PERCENT = (0, 20, 40, 60, 80, 100)
ROUNDS = 7
HITS, MISSES, MIXED, LIGHT = 100, 20, 40, 1_000
SUSPENDED_SECONDS, SUSPENDED_PER_SECOND = 3, 20
# Of which two measurements a figure is the ratio.
RATIOS = {
    "hit_ratio_to_ping": ("hit_p50_ms", "ping_p50_ms"),
    "hit_ratio_to_miss": ("hit_p50_ms", "miss_p50_ms"),
    "distinct_traffic_ratio": ("miss_p50_ms", "uncached_p50_ms"),
    "light_model_hit_cpu_ratio": ("light_hit_cpu_us", "light_uncached_cpu_us"),
}
chance = np.random.default_rng(0)


def new_rows(count: int) -> list[list[float]]:
    """Returns rows that were not sent before."""
    rows: list[list[float]] = chance.uniform(0, HIGHEST, (count, FEATURES)).round(4).tolist()
    return rows


KNOWN = new_rows(1)


class Arm(NamedTuple):
    """A path of an API with a model."""

    api: Server
    model: Path
    path: str = "/predict"
    lookup: str = "sequential"

    def prepare(self) -> None:
        """Sends the known row, because the first call of a model takes longer."""
        switch(self.api, self.model, lookup=self.lookup)
        self.send(KNOWN * 2)

    def requests(self, rows: Sequence[list[float]]) -> list[Request]:
        """Returns a request for each row."""
        return [Request(f"{self.api.url}{self.path}", body_of([row])) for row in rows]

    def send(self, rows: Sequence[list[float]]) -> Run:
        """Sends each row in a request of its own, one after another."""
        load = closed_loop(self.requests(rows), connections=1, count=len(rows), deadline_seconds=60)
        run = asyncio.run(load)
        require_answers(run)
        return run

    def hit_p50_ms(self) -> float:
        self.prepare()
        return self.send(KNOWN * HITS).p50_ms

    def miss_p50_ms(self) -> float:
        self.prepare()
        return self.send(new_rows(MISSES)).p50_ms

    def mixed_ms(self, hit_percent: int) -> dict[str, float]:
        """Returns median and mean where this share of the rows was sent before."""
        self.prepare()
        hits = MIXED * hit_percent // 100
        run = self.send(chance.permutation(KNOWN * hits + new_rows(MIXED - hits)).tolist())
        return {"p50_ms": run.p50_ms, "mean_ms": float(run.latencies_ms.mean())}

    def hit_cpu_us(self) -> float:
        self.prepare()
        before = self.api.cpu_seconds()
        self.send(KNOWN * LIGHT)
        return (self.api.cpu_seconds() - before) / LIGHT * 1e6

    def suspended_p99_ms(self, redis: RedisServer) -> float:
        self.prepare()
        load = open_loop(
            self.requests(new_rows(SUSPENDED_SECONDS * SUSPENDED_PER_SECOND)),
            rate_per_second=SUSPENDED_PER_SECOND,
            seconds=SUSPENDED_SECONDS,
            deadline_seconds=60,
        )
        redis.process.send_signal(signal.SIGSTOP)
        try:
            return asyncio.run(load).p99_ms
        finally:
            redis.process.send_signal(signal.SIGCONT)


def measure(directory: Path) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Returns the figures and, over the share of hits, the series."""
    light, _ = write_models(directory)
    heavy = HERE / "models"
    with ExitStack() as stack:
        redis = stack.enter_context(run_redis(directory / "times", cpus=FRONT))
        api = stack.enter_context(run_api(directory, redis, heavy, cpus=BACK))
        cached, uncached = Arm(api, heavy), Arm(api, heavy, "/uncached")
        arms: dict[str, Callable[[], float]] = {
            "hit_p50_ms": cached.hit_p50_ms,
            "ping_p50_ms": Arm(api, heavy, "/ping").hit_p50_ms,
            "miss_p50_ms": cached.miss_p50_ms,
            "uncached_p50_ms": uncached.miss_p50_ms,
            "parallel_miss_p50_ms": Arm(api, heavy, lookup="parallel").miss_p50_ms,
            "suspended_p99_ms": partial(cached.suspended_p99_ms, redis),
            "light_hit_cpu_us": Arm(api, light).hit_cpu_us,
            "light_uncached_cpu_us": Arm(api, light, "/uncached").hit_cpu_us,
        }
        single = interleave(arms, ROUNDS)
        mixed = interleave(
            {
                f"{name}{percent}": partial(arm.mixed_ms, percent)
                for name, arm in (("", cached), ("uncached_", uncached))
                for percent in HIT_PERCENT
            },
            ROUNDS,
        )
    series = {
        f"{arm}{name}": [
            median_and_spread([found[name] for found in mixed[f"{arm}{percent}"]]).median
            for percent in HIT_PERCENT
        ]
        for arm in ("", "uncached_")
        for name in ("p50_ms", "mean_ms")
    }
    return figures_of(single), {"hit_percent": list(HIT_PERCENT), **series}


def figures_of(measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns medians, and medians of the ratios in each round."""
    figures = {name: median_and_spread(values).median for name, values in measured.items()}
    for name, (arm, other) in RATIOS.items():
        pairs = zip(measured[arm], measured[other], strict=True)
        figures[name] = median_and_spread([one / two for one, two in pairs]).median
    return figures
