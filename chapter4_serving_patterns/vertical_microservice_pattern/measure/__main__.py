"""Measures the claim: each row asks the stages that it needs, in order, and no other."""

import sys

import numpy as np

from tools.measure.results import Results, quick_argument

from .counts import count_all
from .processes import HERE, in_one_process, unseen_rows
from .times import measure_all

CLAIM = (
    "Each row asks only the stages that it needs, one after the other, and gets the answer that "
    "one process would give; without the last stage, every row still has an answer."
)
BAD, QUICK_BAD, QUICK_ROWS = 1_000, 100, 60
MEASURED: dict[str, tuple[str, float]] = {
    "calls_per_row": ("<=", 2.4),
    "accuracy": (">=", 0.985),
    "latency_ratio_to_sum": ("<=", 1.2),
    "deadline_overrun_p99_ms": ("<=", 50),
}


def targets_of(rows: np.ndarray) -> dict[str, tuple[str, float]]:
    """Returns what is counted of these rows; one process says which of them need `second`."""
    unsure = len(in_one_process(rows).needing("second"))
    return {
        "rows_as_in_one_process": ("==", len(rows)),
        "asked_orientation": ("==", len(rows)),
        "asked_upright_or_turned": ("==", len(rows)),
        "asked_second": ("==", unsure),
        "asked_second_with_threshold_0": ("==", 0),
        "stages_in_order": ("==", len(rows)),
        "answered_without_second": ("==", len(rows)),
        "whole_without_second": ("==", len(rows) - unsure),
        "calls_for_bad_requests": ("==", 0),
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    rows, digits = unseen_rows()
    figures: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    if arguments.quick:
        rows = rows[:QUICK_ROWS]
    else:
        figures, series = measure_all(rows, digits)
    counts, control = count_all(rows, QUICK_BAD if arguments.quick else BAD)
    counted = targets_of(rows)
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=counted | (MEASURED if figures else {}),
        series=series,
        holds=True,
    )
    results.holds = all(results.verdict(name) == "met" for name in counted)
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
