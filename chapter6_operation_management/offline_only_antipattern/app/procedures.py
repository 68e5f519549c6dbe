"""Releases the candidate in three ways on the same simulated requests, each from another user."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from .compare import Pairs, compare
from .decide import always_valid, sample_size
from .rule import Rule

Each = NDArray[np.bool_]
# Offline, the versions agree on 97 of 100 rows. Nothing fails and nothing is late in a replay.
RULE = Rule(
    min_pairs=100,
    agreement_at_least=0.8,
    error_share_at_most=0.01,
    p99_ratio_at_most=2.0,
    unpaired_share_at_most=0.01,
)
SHARE, ALPHA = 0.1, 0.05
# Enough to find the gain that the test set promises.
PLANNED = sum(sample_size(baseline=0.94, least_effect=0.03, share=SHARE, alpha=ALPHA, power=0.8))


class Answers(NamedTuple):
    """For each request, whether each version is right, and whether they say the same."""

    live_right: Each
    candidate_right: Each
    agree: Each


class Outcome(BaseModel):
    """What a way to release has cost."""

    # After how many requests the candidate was rejected; null: it was released.
    requests_to_detection: int | None
    users_exposed: int
    wrong_answers_served: int


def outcome(answers: Answers, exposed: Each, detected: int | None) -> Outcome:
    right = np.where(exposed, answers.candidate_right, answers.live_right)
    return Outcome(
        requests_to_detection=detected,
        users_exposed=int(exposed.sum()),
        wrong_answers_served=int((~right).sum()),
    )


def offline(answers: Answers, _: int) -> Outcome:
    """The score on the test set has decided, so everybody gets the candidate."""
    return outcome(answers, np.ones_like(answers.agree), None)


def shadow(answers: Answers, _: int) -> Outcome:
    """Nobody sees the candidate before the rule is asked, once; then all get what it says."""
    live, candidate, agree = (each[: RULE.min_pairs] for each in answers)
    pairs = Pairs(
        pairs=len(agree),
        agreeing=int(agree.sum()),
        only_live_right=int((live & ~candidate).sum()),
        only_shadow_right=int((candidate & ~live).sum()),
    )
    if compare(pairs, RULE).verdict == "go":
        return outcome(answers, np.arange(len(answers.agree)) >= RULE.min_pairs, None)
    return outcome(answers, np.zeros_like(answers.agree), RULE.min_pairs)


def ab(answers: Answers, seed: int) -> Outcome:
    """A tenth of the users gets the candidate until it harms; at the planned size, all do."""
    number = np.arange(len(answers.agree))
    new = np.random.default_rng(seed).random(len(number)) < SHARE
    users = (~new).cumsum(), new.cumsum()
    successes = (answers.live_right & ~new).cumsum(), (answers.candidate_right & new).cumsum()
    harms = always_valid(successes, users, PLANNED, ALPHA).high < 0
    if len(seen := np.flatnonzero(harms[:PLANNED])):
        return outcome(answers, new & (number <= seen[0]), int(seen[0]) + 1)
    return outcome(answers, new | (number >= PLANNED), None)


PROCEDURES: dict[str, Callable[[Answers, int], Outcome]] = {
    "offline": offline,
    "shadow": shadow,
    "ab": ab,
}
