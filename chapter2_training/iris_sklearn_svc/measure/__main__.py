"""Measures the claim: a seed always gives the same bytes, and the serving patterns use them."""

import sys
from importlib import import_module

import numpy as np
from sklearn.datasets import load_iris

from tools.measure.results import Results, quick_argument
from tools.read.patterns import patterns

from ..train.iris import evaluate, load
from ..train.model import fit, train
from .reproduce import HERE, digests_of, over_seeds, reproduce, rows_equal, train_seconds

CLAIM = (
    "Training in a fresh process gives the same bytes, the serving patterns load exactly this "
    "model, and it predicts every row as scikit-learn does."
)


def trained_by_dependents() -> list[bytes]:
    """Trains the model with the marked copy of `train/model.py` of each serving pattern."""
    _, _, code = (HERE / "train/model.py").read_text("utf-8").partition("\n")
    trainers = {pattern: pattern / "train/model.py" for pattern in patterns() if pattern != HERE}
    return [
        import_module(f"{pattern.parent.name}.{pattern.name}.train.model").train()[0]
        for pattern, trainer in trainers.items()
        if trainer.is_file() and trainer.read_text("utf-8").endswith(code)
    ]


def score(seed: int) -> dict[str, float]:
    """Scores the model of a seed on its test rows."""
    split = load(seed)
    pipeline = fit(split.x_train, split.y_train, seed)
    return evaluate(pipeline.predict_proba(split.x_test), split.y_test)


def main() -> int:
    arguments = quick_argument(__doc__)
    rows = load_iris().data.astype(np.float32)
    split = load()
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    model, _ = train()
    digests = reproduce(model, processes=1 if arguments.quick else 5)
    # Without a fixed seed, every training uses a different one.
    unseeded = [train(seed)[0] for seed in range(1, 6)]
    digests_unseeded = digests_of(unseeded)
    equal, equal_of_other = (rows_equal(each, rows, expected) for each in (model, unseeded[-1]))
    loaded = [digest for each in trained_by_dependents() for digest in digests_of([each])]
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={
            "distinct_models": len(digests),
            "rows_equal": equal,
            "dependents": len(loaded),
            "dependents_with_another_model": sum(one not in digests for one in loaded),
        },
        control={
            "distinct_models": len(digests_unseeded),
            "rows_equal": equal_of_other,
            "dependents_with_another_model": sum(one not in digests_unseeded for one in loaded),
        },
        figures={
            **over_seeds(score, 2 if arguments.quick else 20),
            **({} if arguments.quick else {"train_seconds": train_seconds()}),
        },
        targets={
            "distinct_models": ("==", 1),
            "rows_equal": ("==", len(rows)),
            "dependents_with_another_model": ("==", 0),
            "accuracy_median": (">=", 0.95),
        },
        holds=len(digests) == 1 and equal == len(rows) and set(loaded) == digests,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
