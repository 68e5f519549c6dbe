"""Decides whether a model is good enough to publish."""

import math
from typing import Any

# The probability that a model passes although it is not good enough.
RISK = 0.001
# The largest share of images for which server and training may disagree: summing in another order
# can change near ties only.
MOST_DIFFERENT = 0.01


def rejection(scores: dict[str, Any], classes: int, margin: float) -> str | None:
    """Returns the reason to reject a model, or None if it may be published.

    A one-sided binomial test: a model whose true accuracy is only chance plus `margin` passes with
    a probability of at most `RISK`.
    """
    correct, images = scores["correct"], scores["images"]
    threshold = 1 / classes + margin
    if probability_of(correct, images, threshold) > RISK:
        return (
            f"{correct} of {images} correct is not significantly above {threshold:.3f}, "
            f"which is chance ({1 / classes:.3f}) plus a margin of {margin}"
        )
    if scores["different_from_training"] > MOST_DIFFERENT * images:
        return (
            f"the server and the trained network disagree on "
            f"{scores['different_from_training']} of {images} images"
        )
    return None


def probability_of(successes: int, trials: int, chance: float) -> float:
    """Returns the probability of at least this many successes (binomial distribution)."""
    if chance <= 0 or successes == 0:
        return float(successes == 0)
    logarithms = (
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(chance)
        + (trials - k) * math.log1p(-chance)
        for k in range(successes, trials + 1)
    )
    return math.fsum(map(math.exp, logarithms))
