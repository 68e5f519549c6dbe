"""Decides whether a model is good enough to be published."""

import math
from typing import Any

# The chance that a model which is not good enough passes.
RISK = 0.001
# The share of the images of which server and training may say something different: a sum in
# another order decides some that are a tie, and no more.
MOST_DIFFERENT = 0.01


def refusal(scores: dict[str, Any], classes: int, margin: float) -> str | None:
    """Says why a model is not published; None if it is.

    A model is published if one whose true accuracy is chance plus `margin` would get as many of
    its test images right with a probability of `RISK` at most (a one-sided binomial test).
    """
    correct, images = scores["correct"], scores["images"]
    threshold = 1 / classes + margin
    if probability_of(correct, images, threshold) > RISK:
        return (
            f"{correct} of {images} right is not surely more than {threshold:.3f}, which is chance "
            f"({1 / classes:.3f}) and a margin of {margin}"
        )
    if scores["different_from_training"] > MOST_DIFFERENT * images:
        return (
            f"the server says something else than the trained network of "
            f"{scores['different_from_training']} of {images} images"
        )
    return None


def probability_of(successes: int, trials: int, chance: float) -> float:
    """Returns how likely so many successes or more are, each with this chance."""
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
