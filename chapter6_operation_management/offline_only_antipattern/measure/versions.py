"""Trains both versions for several splits, and tells which of them is right where."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ..train.model import Split, classifier, load, trained_on
from ..train.traffic import production

SEEDS = range(5)
LEVEL = 0.001


class Compared(NamedTuple):
    """Two versions on the same rows: how often each is right, and McNemar's exact p."""

    plain: float
    augmented: float
    p_value: float

    @property
    def winner(self) -> str:
        """The version that is right more often, if chance alone hardly does that."""
        if self.p_value >= LEVEL:
            return "nobody"
        return "plain" if self.plain > self.augmented else "augmented"


class Scores(NamedTuple):
    """One seed: the rows that were held out as they are, and as users send them."""

    offline: Compared
    online: Compared


def compared(plain: NDArray[np.bool_], augmented: NDArray[np.bool_]) -> Compared:
    only_plain, differing = int((plain & ~augmented).sum()), int((plain != augmented).sum())
    p_value = float(binomtest(only_plain, differing).pvalue) if differing else 1.0
    return Compared(float(plain.mean()), float(augmented.mean()), p_value)


def right(split: Split, seed: int) -> NDArray[np.bool_]:
    """Returns which held-out rows are right [offline or online, plain or augmented, rows].

    The classifier has no calibration here: it gives probabilities, and hardly changes a label.
    """
    sent = [split.x_test, production(split.x_test, 10 * seed)]
    fitted = [
        classifier().fit(*trained_on(version, split, seed)) for version in ("plain", "augmented")
    ]
    return np.array([[each.predict(x) == split.y_test for each in fitted] for x in sent])


def scores(seed: int) -> Scores:
    """Holds out each half of the digits once, so that all of them are compared."""
    split = load(seed)
    turned = Split(split.x_test, split.y_test, split.x_train, split.y_train)
    both = np.concatenate([right(split, seed), right(turned, seed)], axis=-1)
    return Scores(compared(*both[0]), compared(*both[1]))


def all_scores() -> list[Scores]:
    # libsvm lets other threads run.
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(scores, SEEDS))
