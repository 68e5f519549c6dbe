"""Measures the claim: one model for each iris, whose label 1 is that iris, to the byte."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris

from tools.measure.results import Results, quick_argument

from ..train.iris import LABELS, evaluate
from ..train.model import fit, load_one_against_rest
from .reproduce import HERE, over_seeds, rows_equal, train_each

CLAIM = (
    "For each iris, trained again in a fresh process, the model has the same bytes, its label 1 is "
    "that iris, and it predicts every row as scikit-learn does."
)


def score(seed: int) -> dict[str, float]:
    """Returns how good the default model of a seed is on the rows that the seed leaves out."""
    split = load_one_against_rest("virginica", seed)
    pipeline = fit(split.x_train, split.y_train, seed)
    return evaluate(pipeline.predict_proba(split.x_test), split.y_test)


def main() -> int:
    arguments = quick_argument(__doc__)
    rounds = 1 if arguments.quick else 3
    rows = load_iris().data.astype(np.float32)
    digests: set[str] = set()
    unseeded: set[str] = set()
    equal = equal_if_inverted = 0
    seconds = 0.0
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory)
        for positive in LABELS:
            options = ["--positive", positive]
            others = ([*options, "--seed", str(seed)] for seed in range(1, rounds + 2))
            unseeded |= train_each(output, others).digests
            ours = train_each(output, [options] * (rounds + 1))
            digests |= ours.digests
            seconds = max(seconds, ours.seconds)
            split = load_one_against_rest(positive)
            expected = fit(split.x_train, split.y_train).predict_proba(rows)
            equal += rows_equal(output / "model.onnx", rows, expected)
            # A model whose positive iris is label 0 answers the other way round.
            equal_if_inverted += rows_equal(output / "model.onnx", rows, expected[:, ::-1])
    total = len(LABELS) * len(rows)
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={"distinct_models": len(digests), "rows_equal": equal},
        control={"distinct_models": len(unseeded), "rows_equal": equal_if_inverted},
        figures={**over_seeds(score), "train_seconds": seconds},
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
