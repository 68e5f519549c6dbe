"""Measures the claim: an open loop sees what a closed loop leaves out."""

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from tools.measure.results import Results, quick_argument
from tools.measure.server import median_and_spread

from .arms import (
    CLOSED,
    CORES,
    GENERATOR,
    HERE,
    OPEN,
    SERVER,
    api,
    null,
    overload,
    stall,
)
from .cost import capacity, cpu_us_per_request, generator, two_processes_ratio
from .locusts import ended

CLAIM = (
    "The schedule sees the requests that were due while a server stalls, and a rate above the "
    "capacity never passes."
)
# Multiples of the capacity.
RAMP, STEPS = 1.2, 12
OVERLOADS = (1.25, 1.5, 2.0)
# Four times the default, so that a busy machine does not fail the closed loop, which should pass.
OVERLOADED: dict[str, float] = {"step_seconds": 10, "objective_p99_ms": 1_000}
# Above what any machine answers.
QUICK_RATE = 600
QUICK: dict[str, float] = {"step_seconds": 4, "objective_p99_ms": 2_000, "max_lag_p99_ms": 10_000}


def unlimited(rates: list[float], settings: dict[str, float]) -> tuple[int, int]:
    """Counts without the mechanisms: in a closed loop, and with a larger limit."""
    return overload(CLOSED, rates, settings, MAX_BODY_BYTES="1000000")


def count_quickly() -> Results:
    """Counts in all arms at the same time, because no times matter."""
    with ThreadPoolExecutor() as threads:
        stalls = [threads.submit(stall, loop, 3) for loop in (OPEN, CLOSED)]
        ours = threads.submit(overload, OPEN, [QUICK_RATE], QUICK)
        control = threads.submit(unlimited, [QUICK_RATE], QUICK)
    return results_of([each.result() for each in stalls], ours.result(), control.result())


def counts_of(stalled: dict[str, float], passes: int, answered: int) -> dict[str, int]:
    return {
        "stalled_requests_seen": int(stalled["seen"]),
        "over_objective_passed": passes,
        "oversized_answered": answered,
    }


def results_of(
    stalls: list[dict[str, float]],
    ours: tuple[int, int],
    without: tuple[int, int],
    figures: dict[str, float] | None = None,
    series: dict[str, list[float]] | None = None,
) -> Results:
    counts, control = counts_of(stalls[0], *ours), counts_of(stalls[1], *without)
    due = int(stalls[0]["due"])
    expected: dict[str, tuple[str, float]] = {
        # The signal reaches the server a moment after the clock was read.
        "stalled_requests_seen": (">=", math.ceil(0.95 * due)),
        "over_objective_passed": ("==", 0),
        "oversized_answered": ("==", 0),
    }
    return Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={"stalled_requests_due": due, **counts},
        control=control,
        figures=figures or {},
        series=series or {},
        targets={**expected, **(TARGETS if figures else {})},
        holds=counts["stalled_requests_seen"] >= 0.95 * due > control["stalled_requests_seen"]
        and counts["over_objective_passed"] == counts["oversized_answered"] == 0
        and control["over_objective_passed"] > 0 < control["oversized_answered"],
    )


TARGETS: dict[str, tuple[str, float]] = {
    "ratio_to_closed_loop_capacity": (">=", 0.7),
    "generator_ratio": (">=", 5.0),
    "generator_lag_p99_ms": ("<=", 20.0),
    "locust_cpu_us_per_request": ("<=", 350.0),
    "two_processes_ratio": (">=", 1.4),
}


def measure() -> Results:
    with api() as server:
        closed = median_and_spread([capacity(server) for _ in range(3)]).median
        ramp = ended(server.url, rate=RAMP * closed, steps=STEPS, step_seconds=10)
    if not ramp.held or ramp.steps[-1].verdict.startswith("discarded"):
        sys.exit(f"error: measure on a quiet machine, {ramp.steps[-1]}")
    rates = [each * closed for each in OVERLOADS]
    stalls = [stall(loop, 10) for loop in (OPEN, CLOSED)]
    ours = overload(OPEN, rates, OVERLOADED)
    without = unlimited(rates, OVERLOADED)
    with null() as server:
        sent, cost = generator(server), cpu_us_per_request(server)
    highest = ramp.held[-1].rate
    figures = {
        "highest_rate_per_second": highest,
        "closed_loop_capacity_per_second": closed,
        "ratio_to_closed_loop_capacity": highest / closed,
        "stall_p99_ms": stalls[0]["p99_ms"],
        "closed_stall_p99_ms": stalls[1]["p99_ms"],
        "generator_ratio": sent["generator_per_second"] / max(rates),
        **sent,
        **cost,
        "two_processes_ratio": two_processes_ratio(),
    }
    shown = [step for step in ramp.steps if math.isfinite(step.p99_ms)]
    series = {
        "rate_per_second": [step.rate for step in shown],
        "p50_ms": [step.p50_ms for step in shown],
        "p99_ms": [step.p99_ms for step in shown],
    }
    return results_of(stalls, ours, without, figures, series)


def main() -> int:
    arguments = quick_argument(__doc__)
    if len(CORES) > 1:
        os.sched_setaffinity(0, GENERATOR | (SERVER if arguments.quick else set()))
    return (count_quickly() if arguments.quick else measure()).finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
