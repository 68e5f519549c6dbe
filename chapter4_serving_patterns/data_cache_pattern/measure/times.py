"""Measures how long a request waits for its pictures: in the cache, missing, without a cache."""

import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tools.measure.server import interleave, median_and_spread

from ..app.schema import SAMPLE
from .processes import CLIENT, Bench, bench, body_of

# Where there are two cores, the API has one, and PostgreSQL, Redis and this process share the rest.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
FRONT, BACK = {CORES[0]}, {CORES[-1]}
ROUNDS, HITS, MISSES = 7, 50, 10
SMALL, LARGE = SAMPLE[0], f"large-{SAMPLE[0]}"
# Of which two measurements a figure is the ratio.
RATIOS = {
    "prepare_ratio": ("hit_ms", "miss_ms"),
    "prepare_ratio_ttl": ("hit_ttl_ms", "miss_ttl_ms"),
    "prepare_ratio_large": ("hit_large_ms", "miss_large_ms"),
    "json_ratio": ("json_hit_ms", "uncached_ms"),
    "miss_ratio_to_uncached": ("miss_ms", "uncached_ms"),
}


class Arm(NamedTuple):
    """A picture, and how it is cached."""

    only: Bench
    picture_id: str = SMALL
    off: str = ""
    freshness: str = "version"

    def ask(self) -> float:
        url = f"{self.only.apis[0].url}/time"
        answer = CLIENT.post(url, content=body_of([self.picture_id])).raise_for_status()
        return float(answer.json()["milliseconds"])

    def switch(self) -> None:
        self.only.switch(self.off, freshness=self.freshness)

    def hit_ms(self) -> float:
        """Returns the median of requests for a picture that is in the cache."""
        self.switch()
        self.ask()
        return statistics.median(self.ask() for _ in range(HITS))

    def miss_ms(self) -> float:
        """Returns the median of requests for a picture that is not."""
        times = []
        for _ in range(MISSES):
            self.switch()
            times.append(self.ask())
        return statistics.median(times)


def measure(directory: Path) -> dict[str, float]:
    """Returns medians, and medians of the ratios in each round."""
    with bench(directory, photos=1, replicas=1, cpus=(BACK, FRONT)) as only:
        version, ttl = Arm(only), Arm(only, freshness="ttl")
        large, json = Arm(only, LARGE), Arm(only, off="codec")
        arms: dict[str, Callable[[], float]] = {
            "hit_ms": version.hit_ms,
            "miss_ms": version.miss_ms,
            "hit_ttl_ms": ttl.hit_ms,
            "miss_ttl_ms": ttl.miss_ms,
            "hit_large_ms": large.hit_ms,
            "miss_large_ms": large.miss_ms,
            "json_hit_ms": json.hit_ms,
            "uncached_ms": Arm(only, off="cache").miss_ms,
        }
        measured = interleave(arms, ROUNDS)
    figures = {name: median_and_spread(values).median for name, values in measured.items()}
    for name, (arm, other) in RATIOS.items():
        pairs = zip(measured[arm], measured[other], strict=True)
        figures[name] = median_and_spread([one / two for one, two in pairs]).median
    return figures
