"""Measures the claim: each iris has a reproducible model, whose label 1 is that iris."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.datasets import load_iris

from tools.measure.results import Results, quick_argument

from ..train.iris import LABELS, evaluate
from ..train.model import fit, load_one_against_rest, train
from .reproduce import HERE, digests_of, over_seeds, reproduce, rows_equal, train_seconds

CLAIM = (
    "Training in a fresh process gives the same bytes for each iris, label 1 of its model is that "
    "iris, and the model predicts every row as scikit-learn does."
)


def score(seed: int) -> dict[str, float]:
    """Scores the default model of a seed on its test rows."""
    split = load_one_against_rest("virginica", seed)
    pipeline = fit(split.x_train, split.y_train, seed)
    return evaluate(pipeline.predict_proba(split.x_test), split.y_test)


def main() -> int:
    arguments = quick_argument(__doc__)
    rows = load_iris().data.astype(np.float32)
    models = {positive: train(positive)[0] for positive in LABELS}
    processes = 1 if arguments.quick else 4
    with ThreadPoolExecutor() as threads:
        trained = threads.map(
            lambda name: reproduce(models[name], name, processes=processes), LABELS
        )
        digests = set().union(*trained)
    # Without a fixed seed, every training uses a different one.
    unseeded = digests_of(train(positive, seed)[0] for positive in LABELS for seed in range(1, 5))
    equal = equal_if_inverted = 0
    for positive, model in models.items():
        split = load_one_against_rest(positive)
        expected = fit(split.x_train, split.y_train).predict_proba(rows)
        equal += rows_equal(model, rows, expected)
        # With the positive iris as label 0, the columns would be swapped.
        equal_if_inverted += rows_equal(model, rows, expected[:, ::-1])
    total = len(LABELS) * len(rows)
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={"distinct_models": len(digests), "rows_equal": equal},
        control={"distinct_models": len(unseeded), "rows_equal": equal_if_inverted},
        figures={
            **over_seeds(score, 2 if arguments.quick else 20),
            **({} if arguments.quick else {"train_seconds": train_seconds()}),
        },
        targets={
            "distinct_models": ("==", len(LABELS)),
            "rows_equal": ("==", total),
            "accuracy_median": (">=", 0.93),
        },
        holds=len(digests) == len(LABELS) and equal == total,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
