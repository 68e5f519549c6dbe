"""Measures the claim: the same seed gives the same bytes, which serving patterns predict with."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris

from tools.measure.results import Results, quick_argument
from tools.read.patterns import patterns

from ..train.iris import evaluate, load
from ..train.model import NAME, fit
from .reproduce import HERE, over_seeds, rows_equal, train, train_each

CLAIM = (
    "Trained again in a fresh process the model has the same bytes, which are those that serving "
    "patterns load, and it predicts every row as scikit-learn does."
)


def dependents() -> list[Path]:
    """Returns the serving patterns that train this model for themselves, by a marked copy."""
    _, _, code = (HERE / "train/model.py").read_text("utf-8").partition("\n")
    trainers = {pattern: pattern / "train/model.py" for pattern in patterns() if pattern != HERE}
    return [
        pattern
        for pattern, trainer in trainers.items()
        if trainer.is_file() and trainer.read_text("utf-8").endswith(code)
    ]


def score(seed: int) -> dict[str, float]:
    """Returns how good the model of a seed is on the rows that the seed leaves out."""
    split = load(seed)
    pipeline = fit(split.x_train, split.y_train, seed)
    return evaluate(pipeline.predict_proba(split.x_test), split.y_test)


def main() -> int:
    arguments = quick_argument(__doc__)
    rounds = 2 if arguments.quick else 5
    rows = load_iris().data.astype(np.float32)
    split = load()
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    with tempfile.TemporaryDirectory() as directory:
        same, other = Path(directory, "same"), Path(directory, "other")
        ours = train_each(same, [[]] * rounds)
        # Who fixes no seed gets another one each time.
        unseeded = train_each(other, (["--seed", str(seed)] for seed in range(1, rounds + 1)))
        equal, equal_of_other = (
            rows_equal(models / "model.onnx", rows, expected) for models in (same, other)
        )
        loaded = [
            metadata["sha256"]
            for pattern in dependents()
            for metadata in train(Path(directory, pattern.name), pattern=pattern)
            if metadata["name"] == NAME
        ]
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={
            "distinct_models": len(ours.digests),
            "rows_equal": equal,
            "dependents": len(loaded),
            "dependents_with_another_model": sum(one not in ours.digests for one in loaded),
        },
        control={
            "distinct_models": len(unseeded.digests),
            "rows_equal": equal_of_other,
            "dependents_with_another_model": sum(one not in unseeded.digests for one in loaded),
        },
        figures={**over_seeds(score), "train_seconds": ours.seconds},
        targets={
            "distinct_models": ("==", 1),
            "rows_equal": ("==", len(rows)),
            "dependents_with_another_model": ("==", 0),
            "accuracy_median": (">=", 0.95),
        },
        holds=len(ours.digests) == 1 and equal == len(rows) and set(loaded) == ours.digests,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
