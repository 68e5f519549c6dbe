"""Measures the claim: the outlier share is the true share, and the scores are scikit-learn's."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

from tools.measure.results import Results, quick_argument

from ..train.model import draw_noise, fit, load
from .reproduce import HERE, rows_equal, train_each

CLAIM = (
    "The share of outliers that the metadata name is the share of rows that the model scores below "
    "its threshold, and scores and bytes are the same in every training."
)


def main() -> int:
    arguments = quick_argument(__doc__)
    rounds = 2 if arguments.quick else 5
    rows = load()
    pipeline = fit(rows)
    expected = pipeline.decision_function(rows)[:, None]
    with tempfile.TemporaryDirectory() as directory:
        same, other = Path(directory, "same"), Path(directory, "other")
        ours = train_each(same, [[]] * rounds)
        changed = train_each(other, (["--nu", f"0.{digit}"] for digit in range(2, rounds + 2)))
        metadata = json.loads((same / "metadata.json").read_bytes())
        session = onnxruntime.InferenceSession(same / "model.onnx")
        (scores,) = session.run([metadata["output"]["name"]], {"X": rows})
        (noise,) = session.run([metadata["output"]["name"]], {"X": draw_noise(rows)})
        equal, equal_of_other = (
            rows_equal(models / "model.onnx", rows, expected) for models in (same, other)
        )
    named = round(metadata["metrics"]["outlier_share"] * len(rows))
    outliers = int((scores < metadata["threshold"]).sum())
    # What the mean of scikit-learn's -1 and 1 would name.
    mean_of_labels = round(float(np.mean(pipeline.predict(rows))) * len(rows))
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={
            "outliers": outliers,
            "named_too_many": named - outliers,
            "distinct_models": len(ours.digests),
            "rows_equal": equal,
        },
        control={
            "named_too_many": mean_of_labels - outliers,
            "distinct_models": len(changed.digests),
            "rows_equal": equal_of_other,
        },
        figures={
            "outlier_share": outliers / len(rows),
            "outlier_share_of_noise": float((noise < metadata["threshold"]).mean()),
            "train_seconds": ours.seconds,
        },
        targets={
            "named_too_many": ("==", 0),
            "distinct_models": ("==", 1),
            "rows_equal": ("==", len(rows)),
            "outlier_share": ("<=", 0.1),
            "outlier_share_of_noise": (">=", 0.95),
        },
        holds=named == outliers and len(ours.digests) == 1 and equal == len(rows),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
