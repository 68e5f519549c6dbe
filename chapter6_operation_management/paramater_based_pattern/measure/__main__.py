"""Measures the claim: the file decides, every answer says by which version, nothing restarts."""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tools.measure.results import Results, quick_argument
from tools.mesh.proxy import fetch

from ..train.model import load_one_against_rest
from .baselines import OneAttempt, decide_backwards, default_last
from .counts import (
    Counts,
    both,
    count_calls_of_off,
    count_changes,
    count_failed_by_a_restart,
    count_retrained,
    count_unversioned,
)
from .processes import HERE, answers_in, run_models, send
from .rules import STEPS, count_attempts_wrong, count_inversions, count_precedence_wrong, sweep
from .times import measure_changes, measure_latencies

CLAIM = (
    "A model that is off is not called; a change of the file fails no request and changes no "
    "model, and every answer is decided by the version that it names."
)
REQUESTS, QUICK_REQUESTS, CHANGES = 1_000, 200, 100
COUNTED: dict[str, tuple[str, float]] = {
    "calls_of_a_model_that_is_off": ("==", 0),
    "digests_changed": ("==", 0),
    "decisions_without_version": ("==", 0),
    "failed_during_100_changes": ("==", 0),
    "answers_of_another_version": ("==", 0),
    "attempts_wrong": ("==", 0),
    "threshold_inversions": ("==", 0),
    "precedence_wrong": ("==", 0),
}
MEASURED: dict[str, tuple[str, float]] = {
    "change_to_effect_seconds": ("<=", 1),
    "release_ratio_to_change": (">=", 10),
    "proxy_p99_ratio_to_slowest_model": ("<=", 1.6),
}


def held_out(models: dict[str, Any]) -> tuple[dict[str, list[float]], np.ndarray]:
    """Returns the probabilities that the models give the test rows, and which are versicolor."""
    split = load_one_against_rest("versicolor")
    body = json.dumps({"data": split.x_test.tolist()}).encode()
    found = {}
    for name, server in models.items():
        (answer,) = answers_in(send(f"{server.url}/predict", 1, 1, body))
        found[name] = [own for _, own in answer["prediction"]]
    return found, split.y_test


def count_all(requests: int) -> tuple[Counts, Counts, dict[str, list[float]]]:
    """Returns all counts, the same without each mechanism, and the decisions by threshold."""
    with TemporaryDirectory() as name, run_models() as models:
        folder = Path(name)
        with both(models, folder) as (shipped, changed):
            counts = count_calls_of_off(shipped, requests)
            counts |= count_unversioned(shipped) | count_changes(shipped, CHANGES)
            fetch(f"{changed.proxy.url}/without/off", "POST")
            control = count_calls_of_off(changed, requests)
            fetch(f"{changed.proxy.url}/without/version", "POST")
            control |= count_unversioned(changed)
            fetch(f"{changed.proxy.url}/without/swap", "POST")
            stale = count_changes(changed, CHANGES // 10)
        control["answers_of_another_version"] = stale["answers_of_another_version"]
        control["failed_during_100_changes"] = count_failed_by_a_restart(models, folder)
        control["digests_changed"] = count_retrained(models)
        probabilities, is_versicolor = held_out(models)
        swept = sweep(probabilities, folder)
        counts["threshold_inversions"] = count_inversions(swept)
        backwards = sweep(probabilities, folder, decide_backwards)
        control["threshold_inversions"] = count_inversions(backwards)
        wrong, cases = count_precedence_wrong(folder)
        counts |= {"precedence_wrong": wrong, "precedence_cases": cases}
        control["precedence_wrong"], _ = count_precedence_wrong(folder, default_last)
    counts["attempts_wrong"] = count_attempts_wrong()
    control["attempts_wrong"] = count_attempts_wrong(OneAttempt)
    accepted = np.array(swept["versicolor"])
    series = {
        "threshold": [step / (STEPS - 1) for step in range(STEPS)],
        "accepted": accepted.sum(axis=1).tolist(),
        "right": (accepted * is_versicolor).sum(axis=1).tolist(),
    }
    return counts, control, series


def main() -> int:
    arguments = quick_argument(__doc__)
    requests = QUICK_REQUESTS if arguments.quick else REQUESTS
    counts, control, series = count_all(requests)
    figures: dict[str, float] = {}
    if not arguments.quick:
        with TemporaryDirectory() as name, run_models() as models:
            figures = measure_changes(models, Path(name))
        figures |= measure_latencies()
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=COUNTED | {"fallbacks": ("==", requests)} | (MEASURED if figures else {}),
        series=series,
        holds=all(counts[name] == count for name, (_, count) in COUNTED.items())
        and counts["fallbacks"] == requests,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
