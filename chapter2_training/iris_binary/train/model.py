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
    """Returns the split with labels of 1 for the positive iris and 0 for the other two.

    It is the split of three labels, so that the classifiers of one seed have the same test rows.
    """
    split = load(seed)
    index = LABELS.index(positive)
    return split._replace(
        y_train=(split.y_train == index).astype(int), y_test=(split.y_test == index).astype(int)
    )


def fit(x: np.ndarray, y: np.ndarray, seed: int = SEED) -> Pipeline:
    """Fits a scaler, a support vector classifier and its calibration."""
    classifier = CalibratedClassifierCV(SVC(random_state=seed), ensemble=False)
    return make_pipeline(StandardScaler(), classifier).fit(x, y)


def export(pipeline: Pipeline) -> bytes:
    """Writes the pipeline as ONNX: float32 [rows, 4] in, float32 [rows, 2] probabilities out."""
    with warnings.catch_warnings():
        # The converter reads an attribute of SVC that scikit-learn 1.9 deprecates.
        warnings.filterwarnings("ignore", "Attribute `prob", FutureWarning)
        # Without zipmap the probabilities are one array, and not a dictionary a row.
        return convert(pipeline, len(FEATURES), "iris_binary", {"zipmap": False})


def train(positive: str, seed: int = SEED) -> tuple[bytes, dict[str, Any]]:
    """Returns the trained model as ONNX, and what there is to know about it.

    Index 1 of a prediction is the probability of the positive iris.
    """
    split = load_one_against_rest(positive, seed)
    pipeline = fit(split.x_train, split.y_train, seed)
    probabilities = pipeline.predict_proba(split.x_test)
    described = describe(split, probabilities, ["other", positive])
    truth, predicted = split.y_test, probabilities.argmax(axis=1)
    # A model that never says yes has no precision; 0 says so.
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
