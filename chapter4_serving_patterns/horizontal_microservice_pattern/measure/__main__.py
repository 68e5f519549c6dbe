"""Measures the claim: three services at once, and an answer by the deadline whoever is missing."""

import sys

from tools.measure.docker import engine
from tools.measure.results import Results, quick_argument

from .counts import count_all
from .images import count_images_of_one_update
from .processes import HERE
from .times import measure_all

CLAIM = (
    "A request asks its three services at the same time; with one of them hung or dead, every "
    "caller has the other two answers by the deadline, and no label is guessed."
)
REQUESTS, MISSING = 1_000, 300
QUICK_REQUESTS, QUICK_MISSING = 200, 60
# Without the deadline, callers wait for ever. A quick run judges no times: its margin only ends a
# measurement that hangs.
MARGIN_SECONDS, QUICK_MARGIN_SECONDS = 0.5, 20.0
MEASURED: dict[str, tuple[str, float]] = {
    "wait_bound_ratio": ("<=", 1.1),
    "deadline_overrun_p99_ms": ("<=", 50),
    "proxy_cpu_ratio_to_httpx": ("<=", 0.25),
    "tracing_cpu_ratio": ("<=", 1.5),
    "tracing_1_percent_cpu_ratio": ("<=", 1.15),
    # Only with Docker.
    "images_of_one_update": ("==", 1),
}


def targets_of(requests: int, missing: int) -> dict[str, tuple[str, float]]:
    """Returns what is counted of so many requests."""
    return {
        "calls": ("==", 3 * requests),
        "most_calls_of_a_service": ("==", requests),
        "calls_for_bad_requests": ("==", 0),
        "overlapping": ("==", requests),
        "answered_in_time_one_hung": ("==", missing),
        "answered_one_killed": ("==", missing),
        "labels_that_differ": ("<=", 3),
        "failed_while_traces_hang": ("==", 0),
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    sizes = (QUICK_REQUESTS, QUICK_MISSING) if arguments.quick else (REQUESTS, MISSING)
    margin_seconds = QUICK_MARGIN_SECONDS if arguments.quick else MARGIN_SECONDS
    counts, control, overrun_ms = count_all(*sizes, margin_seconds)
    figures: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    if not arguments.quick:
        figures, series = measure_all()
        figures["deadline_overrun_p99_ms"] = overrun_ms
    if figures and engine():
        figures["images_of_one_update"] = count_images_of_one_update()
    counted = targets_of(*sizes)
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=counted | {name: MEASURED[name] for name in MEASURED if name in figures},
        series=series,
        holds=True,
    )
    results.holds = all(results.verdict(name) == "met" for name in counted)
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
