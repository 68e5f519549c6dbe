# Copied from chapter4_serving_patterns/web_single_pattern/train/iris.py
"""Splits the iris data into training and test rows, and scores predictions."""

from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_iris
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    precision_score,
    recall_score,
)
from sklearn.model_selection import train_test_split

from .artifact import digest

SEED = 0
DATA = load_iris()
FEATURES = [str(name) for name in DATA.feature_names]
LABELS = [str(name) for name in DATA.target_names]
# A row as an example of a request.
SAMPLE: list[list[float]] = DATA.data[:1].tolist()


class Split(NamedTuple):
    """Float32 rows [rows, 4] and their labels [rows]: 105 for training, 45 for testing."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(seed: int = SEED) -> Split:
    """Returns a stratified split: each label has the same share in both parts."""
    x_train, x_test, y_train, y_test = train_test_split(
        DATA.data.astype(np.float32),
        DATA.target,
        test_size=0.3,
        stratify=DATA.target,
        random_state=seed,
    )
    return Split(x_train, y_train, x_test, y_test)


def evaluate(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Scores probabilities [rows, labels] against labels [rows].

    Precision and recall are macro averages: micro averages would equal the accuracy.
    """
    predicted = probabilities.argmax(axis=1)
    scores = {
        "accuracy": accuracy_score(y, predicted),
        "precision_macro": precision_score(y, predicted, average="macro", zero_division=0),
        "recall_macro": recall_score(y, predicted, average="macro"),
        "log_loss": log_loss(y, probabilities),
    }
    return {name: round(float(score), 4) for name, score in scores.items()}


def describe(split: Split, probabilities: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Returns a classifier's metadata, given its probabilities [45, labels] for the test rows."""
    return {
        "input": {"name": "X", "shape": [None, len(FEATURES)], "features": FEATURES},
        "output": {"name": "probabilities", "shape": [None, len(labels)]},
        "labels": labels,
        "sample": SAMPLE,
        "metrics": evaluate(probabilities, split.y_test),
        # One row per true label, one column per predicted label.
        "confusion_matrix": confusion_matrix(split.y_test, probabilities.argmax(axis=1)).tolist(),
        "training_data_sha256": digest(split.x_train, split.y_train),
    }
