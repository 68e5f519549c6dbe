"""Decides whether the requests of a step have met the objective."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from .settings import Settings


@dataclass(frozen=True)
class Totals:
    """What has been counted since the start of the test; times are counts by milliseconds."""

    sent: int = 0
    errors: int = 0
    times_ms: Mapping[int, int] = field(default_factory=dict)
    lags_ms: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a rate was measured to do, and why it misses the objective: empty if it meets it."""

    rate: float
    p50_ms: float
    p99_ms: float
    error_share: float
    lag_p99_ms: float
    missed: str

    def __str__(self) -> str:
        return (
            f"{self.rate:g}/s: p50 {self.p50_ms:g} ms, p99 {self.p99_ms:g} ms, "
            f"errors {self.error_share:.2%}, sent late by {self.lag_p99_ms:g} ms: "
            f"{self.missed or 'held'}"
        )


def judge(rate: float, before: Totals, after: Totals, settings: Settings) -> Step:
    """Judges the requests between two totals.

    Requests without an answer count as slower than any other, or a server that hangs would have no
    slow ones. By Little's law, as many as arrive within the objective may still be in time.
    """
    times: Counter[float] = Counter(after.times_ms)
    times.subtract(before.times_ms)
    lags: Counter[float] = Counter(after.lags_ms)
    lags.subtract(before.lags_ms)
    answered = times.total()
    waiting = after.sent - sum(after.times_ms.values())
    times[math.inf] = max(0, waiting - math.ceil(rate * settings.objective_p99_ms / 1000))
    p99_ms, lag_p99_ms = percentile(times, 99), percentile(lags, 99)
    error_share = (after.errors - before.errors) / max(1, answered)
    if lag_p99_ms > settings.max_lag_p99_ms:
        missed = f"discarded, the generator is late by over {settings.max_lag_p99_ms:g} ms"
    elif not answered:
        missed = "missed, no request was answered"
    elif error_share > settings.objective_error_share:
        missed = f"missed, more errors than {settings.objective_error_share:.2%}"
    elif p99_ms > settings.objective_p99_ms:
        missed = f"missed, p99 above {settings.objective_p99_ms:g} ms"
    else:
        missed = ""
    return Step(rate, percentile(times, 50), p99_ms, error_share, lag_p99_ms, missed)


def percentile(counts: Mapping[float, int], percent: float) -> float:
    """Returns the nearest-rank percentile of values with their counts; 0 if there are none."""
    left = math.ceil(sum(counts.values()) * percent / 100)
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return 0.0
