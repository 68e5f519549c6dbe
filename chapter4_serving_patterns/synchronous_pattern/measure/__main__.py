"""Measures the claim: each next step has its prediction, and no caller waits past its deadline."""

import json
import os
import sys
import time

from tools.measure.results import Results, quick_argument
from tools.measure.server import Server, suspended
from tools.mesh.proxy import fetch

from .cost import measure_cpu, measure_overheads, measure_waiting, models
from .processes import CORES, DEADLINE_SECONDS, HERE, run_predictor, run_web, send

CLAIM = (
    "Every next step follows its prediction; with a hung model every caller returns by the "
    "deadline, and nothing is computed for a caller that has gone on."
)
STEPS, WAITING, AT_ONCE = 600, 40, 20
MARGIN_SECONDS, NEVER_SECONDS = 0.1, 600.0
# A quick run judges no times: this only ends a measurement that hangs.
QUICK_MARGIN_SECONDS = 20.0
COUNTED: dict[str, tuple[str, float]] = {
    "steps_after_prediction": ("==", STEPS),
    "late_callers": ("==", 0),
    "fallbacks": ("==", WAITING),
    "begun_for_nobody": ("==", 0),
}
MEASURED: dict[str, tuple[str, float]] = {
    "overhead_ratio_16x_to_1x": ("<=", 1.5),
    "web_cpu_ratio_to_predictor": ("<=", 2.0),
    "littles_law_error": ("<=", 0.05),
    "web_memory_mb": ("<=", 60),
}


def count_steps(web: Server) -> dict[str, int]:
    """Returns how many next steps were taken, and how many of them after their prediction."""
    send(f"{web.url}/sort", 16, STEPS)
    counted: dict[str, int] = fetch(f"{web.url}/counts")
    return counted


def count_late(web: Server, predictor: Server, patience_seconds: float) -> dict[str, int]:
    """Returns how many callers wait longer for a hung predictor, and how many get a fallback."""
    send(f"{web.url}/sort", WAITING, WAITING)
    with suspended(predictor):
        run = send(f"{web.url}/sort", WAITING, WAITING, patience_seconds, keep_bodies=True)
    answers = [json.loads(body) for body in run.bodies or [] if body]
    return {
        "late_callers": run.sent - run.statuses[200],
        "fallbacks": sum(answer["fallback"] for answer in answers),
    }


def count_begun_for_nobody(web: Server, predictor: Server) -> dict[str, int]:
    """Returns how many calls of the model begin after all callers have gone on."""
    fetch(f"{predictor.url}/hang", "POST")
    try:
        send(f"{web.url}/predict", AT_ONCE, AT_ONCE)
        # predictor counts the time from when it has the request, a little later than web.
        time.sleep(DEADLINE_SECONDS)
        begun = len(fetch(f"{predictor.url}/calls"))
    finally:
        fetch(f"{predictor.url}/go_on", "POST")
    # The thread works in order, so after this one everything before it is done.
    fetch(f"{predictor.url}/predict/test")
    return {"begun_for_nobody": len(fetch(f"{predictor.url}/calls")) - begun - 1}


def count_all(margin_seconds: float) -> tuple[dict[str, int], dict[str, int]]:
    """Returns all counts, and the same without each mechanism."""
    with (
        run_predictor(HERE / "models") as predictor,
        run_web(predictor.url) as web,
        run_web(predictor.url, "CountingPredictor", NEVER_SECONDS) as patient,
        run_web(predictor.url, "ForgetfulPredictor", NEVER_SECONDS) as forgetful,
        run_web(predictor.url, "SilentPredictor") as silent,
    ):
        counts = count_steps(patient) | count_begun_for_nobody(web, predictor)
        control = count_begun_for_nobody(silent, predictor)
        # Later, because these leave calls behind, which predictor still has to work off.
        control |= count_steps(forgetful)
        counts |= count_late(web, predictor, DEADLINE_SECONDS + margin_seconds)
        control |= count_late(patient, predictor, DEADLINE_SECONDS + MARGIN_SECONDS)
        return counts, control


def main() -> int:
    arguments = quick_argument(__doc__)
    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[-1]})
    counts, control = count_all(QUICK_MARGIN_SECONDS if arguments.quick else MARGIN_SECONDS)
    figures: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    if not arguments.quick:
        series = measure_waiting(HERE / "models")
        figures = {"littles_law_error": max(series.pop("error"))}
        with models() as trained:
            figures |= measure_overheads(trained) | measure_cpu(trained["lightest"])
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=COUNTED | (MEASURED if figures else {}),
        series=series,
        holds=all(counts[name] == count for name, (_, count) in COUNTED.items())
        and counts["steps"] == STEPS,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
