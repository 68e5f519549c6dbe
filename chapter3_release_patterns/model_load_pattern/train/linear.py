"""Trains two linear classifiers for iris and exports them with the same interface."""

from typing import Any

from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from .convert import convert
from .iris import FEATURES, LABELS, SEED, describe, load

VERSION = "1"
CLASSIFIERS = {
    "iris_logistic": LogisticRegression(max_iter=1_000),
    "iris_discriminant": LinearDiscriminantAnalysis(),
}


def train(name: str, seed: int = SEED) -> tuple[bytes, dict[str, Any]]:
    """Trains one of CLASSIFIERS and returns it as ONNX, with its metadata."""
    split = load(seed)
    classifier = CLASSIFIERS[name].fit(split.x_train, split.y_train)
    # Without zipmap, the probabilities are one array instead of a dictionary per row.
    return convert(classifier, len(FEATURES), name, {"zipmap": False}), {
        "name": name,
        "version": VERSION,
        "parameters": {"classifier": type(classifier).__name__, "seed": seed},
        **describe(split, classifier.predict_proba(split.x_test), LABELS),
    }
