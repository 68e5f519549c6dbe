# Copied from chapter2_training/iris_binary/train/model.py
"""Fits a classifier that tells one iris from the other two, scores it, and exports it as ONNX."""

import warnings
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import precision_score, recall_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from .convert import convert
from .iris import FEATURES, LABELS, SEED, Split, describe, load

VERSION = "1"


def load_one_against_rest(positive: str, seed: int = SEED) -> Split:
    """Returns the split with label 1 for the positive iris and 0 for the other two.

    The three classifiers of a seed therefore have the same test rows.
    """
    split = load(seed)
    index = LABELS.index(positive)
    return split._replace(
        y_train=(split.y_train == index).astype(int), y_test=(split.y_test == index).astype(int)
    )


def fit(x: np.ndarray, y: np.ndarray, seed: int = SEED) -> Pipeline:
    """Fits a scaler and a calibrated support vector classifier."""
    classifier = CalibratedClassifierCV(SVC(random_state=seed), ensemble=False)
    return make_pipeline(StandardScaler(), classifier).fit(x, y)


def export(pipeline: Pipeline) -> bytes:
    """Writes the pipeline as ONNX: float32 [rows, 4] in, float32 [rows, 2] probabilities out."""
    with warnings.catch_warnings():
        # skl2onnx reads an attribute of SVC that scikit-learn 1.9 deprecates.
        warnings.filterwarnings("ignore", "Attribute `prob", FutureWarning)
        # With zipmap, probabilities would be a dictionary per row instead of one array.
        return convert(pipeline, len(FEATURES), "iris_binary", {"zipmap": False})


def train(positive: str, seed: int = SEED) -> tuple[bytes, dict[str, Any]]:
    """Returns the model as ONNX, and its metadata.

    Index 1 of a prediction is the probability of the positive iris.
    """
    split = load_one_against_rest(positive, seed)
    pipeline = fit(split.x_train, split.y_train, seed)
    probabilities = pipeline.predict_proba(split.x_test)
    described = describe(split, probabilities, ["other", positive])
    truth, predicted = split.y_test, probabilities.argmax(axis=1)
    # A model that never predicts the positive iris gets a precision of 0.
    described["metrics"] |= {
        "precision_positive": round(precision_score(truth, predicted, zero_division=0), 4),
        "recall_positive": round(recall_score(truth, predicted), 4),
    }
    return export(pipeline), {
        "name": f"iris_binary_{positive}",
        "version": VERSION,
        "positive": positive,
        "parameters": {
            "scaler": "StandardScaler",
            "classifier": "SVC",
            "calibration": "sigmoid",
            "positive": positive,
            "seed": seed,
        },
        **described,
    }
