# Copied from chapter2_training/iris_sklearn_rf/train/model.py
"""Fits a random forest to iris, scores it on test rows, and exports it as ONNX."""

from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from .convert import convert
from .iris import LABELS, SEED, describe, load

NAME = "iris_rf"
VERSION = "1"
TREES = 100


def fit(x: np.ndarray, y: np.ndarray, seed: int = SEED) -> RandomForestClassifier:
    """Fits the trees, which need no scaled features."""
    return RandomForestClassifier(n_estimators=TREES, random_state=seed).fit(x, y)


def export(forest: RandomForestClassifier) -> bytes:
    """Writes the forest as ONNX: float32 [rows, 4] in, float32 [rows, 3] probabilities out."""
    # With zipmap, probabilities would be a dictionary per row instead of one array.
    return convert(forest, forest.n_features_in_, NAME, {"zipmap": False})


def train(seed: int = SEED) -> tuple[bytes, dict[str, Any]]:
    """Returns the model as ONNX, and its metadata."""
    split = load(seed)
    forest = fit(split.x_train, split.y_train, seed)
    return export(forest), {
        "name": NAME,
        "version": VERSION,
        "parameters": {"classifier": "RandomForestClassifier", "trees": TREES, "seed": seed},
        **describe(split, forest.predict_proba(split.x_test), LABELS),
    }
