"""Measures the claim: the test set and simulated traffic choose different versions."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from tools.measure.results import MEETS, Results, quick_argument
from tools.measure.server import Server, median_and_spread
from tools.measure.servers import run_uvicorn

from ..app.procedures import PLANNED, Answers, Outcome, ab, shadow
from ..app.report import REQUESTS, Replay, ask, replay
from .versions import LEVEL, Scores, all_scores

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
CLAIM = (
    "The version that wins on the test set loses on simulated traffic, and a shadow or an A/B test "
    "rejects it after hundreds of requests, which a score on the test set never does."
)
COUNTED: dict[str, tuple[str, float]] = {
    "offline_winner_is_plain": ("==", 5),
    "online_winner_is_augmented": ("==", 5),
    "shadow_users_exposed": ("==", 0),
    "shadow_requests_to_detection": ("<=", 200),
    "ab_users_exposed": ("<=", REQUESTS // 10),
    "ab_requests_to_detection": ("<=", 1_000),
    "false_objections": ("==", 0),
}
MEASURED: dict[str, tuple[str, float]] = {"offline_mcnemar_p_most": ("<=", LEVEL)}
RUNS = 300


def server(app: str) -> AbstractContextManager[Server]:
    return run_uvicorn(f"{PACKAGE}.{app}", cwd=ROOT)


def objections(replayed: Replay) -> int:
    return sum(each.requests_to_detection is not None for each in replayed.procedures.values())


def detected(outcome: Outcome) -> int:
    """Returns after how many requests; if never, all of them."""
    return outcome.requests_to_detection or REQUESTS


def runs(procedure: Callable[[Answers, int], Outcome], answers: Answers) -> Iterator[int]:
    """Yields the requests to detection in each of many runs: another order, and other users."""
    for seed in range(RUNS):
        order = np.random.default_rng([seed, 1]).permutation(REQUESTS)
        yield detected(procedure(Answers(*(each[order] for each in answers)), seed))


def measure_runs() -> dict[str, float]:
    shifted, unshifted = ask("shifted"), ask("unshifted")
    of_ab = [*runs(ab, shifted)]
    return {
        "ab_median_requests": median_and_spread([float(each) for each in of_ab]).median,
        "ab_most_requests": max(of_ab),
        "shadow_most_requests": max(runs(shadow, shifted)),
        "ab_false_objections_of_300": sum(each < REQUESTS for each in runs(ab, unshifted)),
        "shadow_false_objections_of_300": sum(each < REQUESTS for each in runs(shadow, unshifted)),
    }


def measure_memory() -> dict[str, float]:
    with server("app.report:app") as procedures, server("app.main:app") as version:
        return {
            "memory_mb": procedures.memory_mb(),
            "version_memory_mb": version.memory_mb(),
        }


def measure_seeds(seeds: Sequence[Scores]) -> dict[str, float]:
    """Returns the range over the seeds."""
    figures: dict[str, float] = {}
    for where, each in (
        ("offline", [seed.offline for seed in seeds]),
        ("online", [seed.online for seed in seeds]),
    ):
        for version, accuracies in (
            ("plain", [scores.plain for scores in each]),
            ("augmented", [scores.augmented for scores in each]),
        ):
            figures[f"{where}_accuracy_{version}_least"] = min(accuracies)
            figures[f"{where}_accuracy_{version}_most"] = max(accuracies)
        figures[f"{where}_mcnemar_p_most"] = max(scores.p_value for scores in each)
    return figures


def main() -> int:
    arguments = quick_argument(__doc__)
    seeds = all_scores()
    began = time.monotonic()
    shifted = replay("shifted")
    seconds = time.monotonic() - began
    unshifted = replay("unshifted")
    figures: dict[str, float] = {}
    if not arguments.quick:
        figures = {"procedure_seconds": seconds, "ab_planned_users": PLANNED}
        figures |= measure_runs() | measure_memory() | measure_seeds(seeds)
    offline, of_shadow, of_ab = (shifted.procedures[name] for name in ("offline", "shadow", "ab"))
    winners = [(seed.offline.winner, seed.online.winner) for seed in seeds]
    counts = {
        "offline_winner_is_plain": sum(offline == "plain" for offline, _ in winners),
        "online_winner_is_augmented": sum(online == "augmented" for _, online in winners),
        "shadow_users_exposed": of_shadow.users_exposed,
        "shadow_requests_to_detection": detected(of_shadow),
        "shadow_wrong_answers_served": of_shadow.wrong_answers_served,
        "ab_users_exposed": of_ab.users_exposed,
        "ab_requests_to_detection": detected(of_ab),
        "ab_wrong_answers_served": of_ab.wrong_answers_served,
        "false_objections": objections(unshifted),
    }
    control = {
        # The same seeds, with a test set like the traffic, and with traffic like the test set.
        "offline_winner_is_plain": sum(online == "plain" for _, online in winners),
        "online_winner_is_augmented": sum(offline == "augmented" for offline, _ in winners),
        # By the score on the test set alone, everybody gets the candidate, and nothing rejects it.
        "shadow_users_exposed": offline.users_exposed,
        "shadow_requests_to_detection": detected(offline),
        "shadow_wrong_answers_served": offline.wrong_answers_served,
        "ab_users_exposed": offline.users_exposed,
        "ab_requests_to_detection": detected(offline),
        "ab_wrong_answers_served": offline.wrong_answers_served,
        "false_objections": objections(shifted),
    }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets=COUNTED | (MEASURED if figures else {}),
        holds=all(MEETS[sign](counts[name], bound) for name, (sign, bound) in COUNTED.items()),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
