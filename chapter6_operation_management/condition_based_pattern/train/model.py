"""Fits a digits classifier for one orientation, scores it on held-out rows and exports it."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from .artifact import digest
from .convert import convert

CONDITIONS = ("upright", "upside-down")
VERSION = "1"
SEED = 0
SIDE = 8
FEATURES = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]
LABELS = [str(digit) for digit in range(10)]


class Split(NamedTuple):
    """Rows of pixels [rows, 64] and their labels: 898 for training, 899 for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load() -> Split:
    """Returns the upright digits; each label has the same share in both parts."""
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.data.astype(np.float32),
        digits.target,
        test_size=0.5,
        stratify=digits.target,
        random_state=SEED,
    )
    return Split(x_train, y_train, x_test, y_test)


def seen(x: np.ndarray, condition: str) -> np.ndarray:
    """Returns the rows as a camera sees them; upside down, the last pixel is the first."""
    return x[:, ::-1] if condition == "upside-down" else x


def classifier() -> StackingClassifier:
    """Returns a support vector classifier and a calibration of its scores, as for the iris."""
    svc = SVC(decision_function_shape="ovo", random_state=SEED)
    return StackingClassifier(
        [("svc", svc)], LogisticRegression(max_iter=1_000), stack_method="decision_function"
    )


def evaluate(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": round(accuracy_score(y, probabilities.argmax(axis=1)), 4),
        "log_loss": round(log_loss(y, probabilities), 4),
    }


def export(fitted: StackingClassifier, name: str) -> bytes:
    """Exports it as ONNX: float32 [rows, 64] in, float32 [rows, 10] probabilities out."""
    with warnings.catch_warnings():
        # skl2onnx reads an attribute of SVC that scikit-learn 1.9 deprecates.
        warnings.filterwarnings("ignore", "Attribute `prob", FutureWarning)
        # Without ZipMap the probabilities are one array instead of one dictionary per row.
        return convert(fitted, len(FEATURES), name, {"zipmap": False})


def train(condition: str) -> tuple[bytes, dict[str, Any]]:
    """Returns the model for a condition, trained on all rows as seen then, and its metadata."""
    split = load()
    x_train, x_test = seen(split.x_train, condition), seen(split.x_test, condition)
    fitted = classifier().fit(x_train, split.y_train)
    # Upside down, a 6 looks like a 9.
    six = int(np.flatnonzero(split.y_test == 6)[0])
    name = f"digits_{condition.replace('-', '_')}"
    return export(fitted, name), {
        "name": name,
        "version": VERSION,
        "condition": condition,
        "parameters": {"classifier": "SVC", "calibration": "logistic regression", "seed": SEED},
        "input": {"name": "X", "shape": [None, len(FEATURES)], "features": FEATURES},
        "output": {"name": "probabilities", "shape": [None, len(LABELS)]},
        "labels": LABELS,
        "sample": x_test[six : six + 1].tolist(),
        "metrics": evaluate(fitted.predict_proba(x_test), split.y_test),
        "training_data_sha256": digest(np.ascontiguousarray(x_train), split.y_train),
    }
