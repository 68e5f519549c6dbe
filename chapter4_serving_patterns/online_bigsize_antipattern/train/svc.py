"""Fits a support vector classifier on the same digits, and exports it by skl2onnx."""

import warnings
from typing import Any

import numpy as np
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from .artifact import digest
from .convert import convert
from .model import FEATURES, LABELS, evaluate, load

NAME = "digits_svc"
VERSION = "1"
# The usual ones for these digits: scikit-learn's own example has gamma=.001.
PENALTY, GAMMA = 10.0, 0.001


def fit(x: np.ndarray, y: np.ndarray) -> StackingClassifier:
    """Fits the classifier, and a logistic regression that turns its scores into probabilities."""
    svc = SVC(C=PENALTY, gamma=GAMMA, decision_function_shape="ovr")
    calibrated = StackingClassifier(
        [("svc", svc)], LogisticRegression(max_iter=1_000), stack_method="decision_function"
    )
    return calibrated.fit(x, y)


def export(classifier: Any, name: str = NAME) -> bytes:
    """Exports a classifier as ONNX: float32 [rows, 64] in, float32 [rows, 10] probabilities out."""
    with warnings.catch_warnings():
        # skl2onnx reads an attribute of SVC that scikit-learn 1.9 deprecates.
        warnings.filterwarnings("ignore", "Attribute `prob", FutureWarning)
        return convert(classifier, len(FEATURES), name, {"zipmap": False})


def train() -> tuple[bytes, dict[str, Any]]:
    """Returns the trained model as ONNX, and its metadata."""
    x_train, y_train, x_test, y_test = load()
    classifier = fit(x_train, y_train)
    return export(classifier), {
        "name": NAME,
        "version": VERSION,
        "input": {"name": "X", "shape": [None, len(FEATURES)], "features": FEATURES},
        "output": {"name": "probabilities", "shape": [None, len(LABELS)]},
        "labels": LABELS,
        "sample": x_test[:1].tolist(),
        "metrics": evaluate(classifier.predict_proba(x_test), y_test),
        "training_data_sha256": digest(x_train, y_train),
    }
