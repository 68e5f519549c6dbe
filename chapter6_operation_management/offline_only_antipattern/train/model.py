"""Fits a version of the digits classifier, scores it on held-out rows and exports it as ONNX."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from .artifact import digest
from .convert import convert
from .traffic import production

VERSION = "1"
SEED = 0
SIDE = 8
FEATURES = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]
LABELS = [str(digit) for digit in range(10)]


class Split(NamedTuple):
    """Rows of pixels [rows, 64] and their labels: 898 for training, 899 held out."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(seed: int = SEED) -> Split:
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.data.astype(np.float32),
        digits.target,
        test_size=0.5,
        stratify=digits.target,
        random_state=seed,
    )
    return Split(x_train, y_train, x_test, y_test)


def trained_on(version: str, split: Split, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows as they are, or two copies as users send them, without the originals."""
    if version == "plain":
        return split.x_train, split.y_train
    copies = [production(split.x_train, 10 * seed + copy) for copy in (1, 2)]
    return np.concatenate(copies), np.tile(split.y_train, 2)


def classifier() -> SVC:
    return SVC(C=10, gamma=0.001)


def evaluate(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    return {
        "accuracy": round(accuracy_score(y, probabilities.argmax(axis=1)), 4),
        "log_loss": round(log_loss(y, probabilities), 4),
    }


def export(fitted: CalibratedClassifierCV, name: str) -> bytes:
    """Exports it as ONNX: float32 [rows, 64] in, float32 [rows, 10] probabilities out."""
    with warnings.catch_warnings():
        # skl2onnx reads an attribute of SVC that scikit-learn 1.9 deprecates.
        warnings.filterwarnings("ignore", "Attribute `prob", FutureWarning)
        # Without ZipMap the probabilities are one array instead of one dictionary per row.
        return convert(fitted, len(FEATURES), name, {"zipmap": False})


def train(version: str) -> tuple[bytes, dict[str, Any]]:
    """Returns a version, `plain` or `augmented`, and its metadata with the offline score."""
    split = load()
    x, y = trained_on(version, split)
    # One classifier on all rows; the folds serve only to turn its scores into probabilities.
    fitted = CalibratedClassifierCV(classifier(), ensemble=False).fit(x, y)
    name = f"digits_{version}"
    return export(fitted, name), {
        "name": name,
        "version": VERSION,
        "parameters": {"classifier": "SVC", "C": 10, "gamma": 0.001, "seed": SEED},
        "input": {"name": "X", "shape": [None, len(FEATURES)], "features": FEATURES},
        "output": {"name": "probabilities", "shape": [None, len(LABELS)]},
        "labels": LABELS,
        "sample": split.x_test[:1].tolist(),
        "metrics": evaluate(fitted.predict_proba(split.x_test), split.y_test),
        "training_data_sha256": digest(x, y),
    }
