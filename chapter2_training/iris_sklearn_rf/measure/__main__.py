"""Measures the claim: the same seed gives the same forest, and ONNX predicts like scikit-learn."""

import sys

import numpy as np
from sklearn.datasets import load_iris

from tools.measure.results import Results, quick_argument

from ..train.iris import evaluate, load
from ..train.model import fit, train
from .reproduce import HERE, digests_of, over_seeds, reproduce, rows_equal, train_seconds

CLAIM = (
    "Training in a fresh process gives the same bytes, and the forest predicts every row as "
    "scikit-learn does."
)


def score(seed: int) -> dict[str, float]:
    """Scores the forest of a seed on its test rows."""
    split = load(seed)
    forest = fit(split.x_train, split.y_train, seed)
    return evaluate(forest.predict_proba(split.x_test), split.y_test)


def main() -> int:
    arguments = quick_argument(__doc__)
    rows = load_iris().data.astype(np.float32)
    split = load()
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    model, _ = train()
    digests = reproduce(model, processes=1 if arguments.quick else 5)
    # Without a fixed seed, every training uses a different one.
    unseeded = [train(seed)[0] for seed in range(1, 6)]
    equal, equal_of_other = (rows_equal(each, rows, expected) for each in (model, unseeded[-1]))
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={"distinct_models": len(digests), "rows_equal": equal},
        control={"distinct_models": len(digests_of(unseeded)), "rows_equal": equal_of_other},
        figures={
            **over_seeds(score, 2 if arguments.quick else 20),
            **({} if arguments.quick else {"train_seconds": train_seconds()}),
            "model_kilobytes": len(model) / 1000,
        },
        targets={
            "distinct_models": ("==", 1),
            "rows_equal": ("==", len(rows)),
            "accuracy_median": (">=", 0.93),
        },
        holds=len(digests) == 1 and equal == len(rows),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
