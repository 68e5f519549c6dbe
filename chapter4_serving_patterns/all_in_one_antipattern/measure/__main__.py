# Copied from chapter4_serving_patterns/web_single_pattern/measure/__main__.py
"""Measures the claim: every row gets scikit-learn's prediction, at a low cost per request."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray
from sklearn.datasets import load_iris

from tools.measure.load import Request, closed_loop
from tools.measure.results import Results, quick_argument
from tools.measure.server import Server

from ..train.iris import load
from ..train.model import fit
from .cost import ARMS, CARELESS, CORES, OURS, measure_costs, server

HERE = Path(__file__).parents[1]
CLAIM = "Every row of a request gets a prediction that equals scikit-learn's."
COUNT_TARGETS = {"rows_answered": ("==", 150), "rows_equal": ("==", 150)}
FIGURE_TARGETS = {
    "cpu_ratio_to_plain": ("<=", 0.35),
    "cpu_ratio_to_noop": ("<=", 1.3),
    "p99_ratio_to_plain": ("<=", 0.5),
    "memory_mb": ("<=", 70),
    "start_seconds": ("<=", 1),
    "refuse_100_mb_seconds": ("<=", 0.2),
}


def count_rows(running: Server) -> tuple[int, int]:
    """Returns how many iris rows get a prediction, and how many of those equal scikit-learn's.

    The rows are sent ten per request. A last request has a misspelt field and must not get
    predictions: each one that it does get is subtracted from the second number.
    """
    rows = load_iris().data.astype(np.float32)
    split = load()
    batches = np.split(rows, 15)
    expected = np.split(fit(split.x_train, split.y_train).predict_proba(rows), 15)
    bodies = [json.dumps({"data": batch.tolist()}).encode() for batch in batches]
    misspelt = json.dumps({"dat": batches[0].tolist()}).encode()
    requests = [Request(f"{running.url}/predict", body) for body in [*bodies, misspelt]]
    run = uvloop.run(
        closed_loop(requests, connections=1, count=16, deadline_seconds=5, keep_bodies=True)
    )
    answers = [json.loads(body).get("prediction", []) for body in run.bodies or []]
    answered = sum(map(len, answers[:15]))
    equal = sum(map(equal_rows, answers[:15], expected)) - len(answers[15])
    return answered, equal


def equal_rows(answer: list[list[float]], expected: NDArray[np.float64]) -> int:
    """Returns how many rows of an answer are within 1e-5 of the expected ones."""
    pairs = zip(answer, expected, strict=False)
    return sum(bool(np.allclose(row, truth, rtol=0, atol=1e-5)) for row, truth in pairs)


def refuse_100_mb(running: Server) -> float:
    """Returns how many seconds it takes to refuse a body of 100 MB."""
    request = Request(f"{running.url}/predict", b" " * 100_000_000)
    run = uvloop.run(closed_loop(request, connections=1, count=1, deadline_seconds=30))
    if set(run.statuses) != {413}:
        raise SystemExit(f"error: 100 MB were not refused: {run.statuses} {run.errors}")
    return run.p50_ms / 1000


def main() -> int:
    arguments = quick_argument(__doc__)
    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[1]})
    with ExitStack() as stack:
        ours = stack.enter_context(server(*OURS))
        rows_answered, rows_equal = count_rows(ours)
        careless_answered, careless_equal = count_rows(stack.enter_context(server(*CARELESS)))
        figures: dict[str, float] = {}
        if not arguments.quick:
            others = {name: arm for name, arm in ARMS.items() if arm != OURS}
            servers = {name: stack.enter_context(server(*arm)) for name, arm in others.items()}
            figures = measure_costs(servers | {"ours": ours}) | {
                "memory_mb": ours.memory_mb(),
                "start_seconds": ours.start_seconds,
                "refuse_100_mb_seconds": refuse_100_mb(ours),
            }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={"rows_answered": rows_answered, "rows_equal": rows_equal},
        control={"rows_answered": careless_answered, "rows_equal": careless_equal},
        figures=figures,
        targets=COUNT_TARGETS | (FIGURE_TARGETS if figures else {}),
        holds=(rows_answered, rows_equal) == (150, 150),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
