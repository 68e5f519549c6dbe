"""Measures the claim: the outlier share in the metadata is right, and training is reproducible."""

import os
import sys

import numpy as np
from numpy.typing import NDArray

from tools.measure.results import Results, quick_argument

from ..train.model import draw_noise, fit, load, train
from .reproduce import HERE, digests_of, reproduce, rows_equal, train_seconds

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

CLAIM = (
    "The outlier share in the metadata equals the share of rows that the model scores below its "
    "threshold, and every training gives the same bytes and scores."
)
NUS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


def over_nu(rows: NDArray[np.float32]) -> dict[str, list[float]]:
    """Returns the share in the metadata for each `nu`, and the mean of scikit-learn's labels."""
    means = [float(np.mean(fit(rows, nu).predict(rows))) for nu in NUS]
    return {
        "nu_percent": [100 * nu for nu in NUS],
        "named_percent": [100 * train(nu)[1]["metrics"]["outlier_share"] for nu in NUS],
        "mean_of_labels_percent": [100 * mean for mean in means],
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    rows = load()
    pipeline = fit(rows)
    expected = pipeline.decision_function(rows)[:, None]
    model, metadata = train()
    digests = reproduce(model, processes=1 if arguments.quick else 5)
    changed = [train(digit / 10)[0] for digit in range(2, 7)]
    session = onnxruntime.InferenceSession(model)
    (scores,) = session.run([metadata["output"]["name"]], {"X": rows})
    (noise,) = session.run([metadata["output"]["name"]], {"X": draw_noise(rows)})
    equal, equal_of_other = (rows_equal(each, rows, expected) for each in (model, changed[-1]))
    named = round(metadata["metrics"]["outlier_share"] * len(rows))
    outliers = int((scores < metadata["threshold"]).sum())
    # The wrong way: the mean of scikit-learn's predictions, which are -1 and 1.
    mean_of_labels = round(float(np.mean(pipeline.predict(rows))) * len(rows))
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={
            "outliers": outliers,
            "named_too_many": named - outliers,
            "distinct_models": len(digests),
            "rows_equal": equal,
        },
        control={
            "named_too_many": mean_of_labels - outliers,
            "distinct_models": len(digests_of(changed)),
            "rows_equal": equal_of_other,
        },
        figures={
            "outlier_share": outliers / len(rows),
            "outlier_share_of_noise": float((noise < metadata["threshold"]).mean()),
            **({} if arguments.quick else {"train_seconds": train_seconds()}),
        },
        targets={
            "named_too_many": ("==", 0),
            "distinct_models": ("==", 1),
            "rows_equal": ("==", len(rows)),
            "outlier_share": ("<=", 0.1),
            "outlier_share_of_noise": (">=", 0.95),
        },
        series={} if arguments.quick else over_nu(rows),
        holds=named == outliers and len(digests) == 1 and equal == len(rows),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
