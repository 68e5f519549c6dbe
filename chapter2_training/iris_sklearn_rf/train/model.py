"""Fits a random forest to iris, scores it on rows that it has not seen, and exports it as ONNX."""

from typing import Any

import numpy as np
from onnx.checker import check_model
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier

from .iris import LABELS, SEED, describe, load

NAME = "iris_rf"
VERSION = "1"
TREES = 100
# The newest operators of trees that ONNX Runtime and skl2onnx both know.
OPSET = {"": 21, "ai.onnx.ml": 3}


def fit(x: np.ndarray, y: np.ndarray, seed: int = SEED) -> RandomForestClassifier:
    """Fits the trees; they compare features with numbers, so no feature has to be scaled."""
    # One thread: the order in which threads end is in no seed.
    forest = RandomForestClassifier(n_estimators=TREES, random_state=seed, n_jobs=1)
    return forest.fit(x, y)


def export(forest: RandomForestClassifier) -> bytes:
    """Writes the forest as ONNX: float32 [rows, 4] in, float32 [rows, 3] probabilities out."""
    row = np.zeros((1, forest.n_features_in_), np.float32)
    # Without zipmap the probabilities are one array, and not a dictionary a row.
    model = to_onnx(forest, row, name=NAME, options={"zipmap": False}, target_opset=OPSET)
    check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def train(seed: int = SEED) -> tuple[bytes, dict[str, Any]]:
    """Returns the trained model as ONNX, and what there is to know about it."""
    split = load(seed)
    forest = fit(split.x_train, split.y_train, seed)
    return export(forest), {
        "name": NAME,
        "version": VERSION,
        "parameters": {"classifier": "RandomForestClassifier", "trees": TREES, "seed": seed},
        **describe(split, forest.predict_proba(split.x_test), LABELS),
    }
