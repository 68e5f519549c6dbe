# Copied from chapter4_serving_patterns/web_single_pattern/train/model.py
"""Fits the iris classifier, scores it on held-out rows and exports it as ONNX."""

import warnings
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from .convert import convert
from .iris import FEATURES, LABELS, SEED, describe, load

NAME = "iris_svc"
VERSION = "1"
# The `C` of SVC: how much a misclassified training row costs, against a wider margin.
PENALTY = 1.0


def fit(x: np.ndarray, y: np.ndarray, seed: int = SEED, penalty: float = PENALTY) -> Pipeline:
    """Fits a scaler, a support vector classifier and a calibration of its scores."""
    # A logistic regression turns the scores of a row, one per pair of labels, into probabilities.
    # CalibratedClassifierCV does the same, but for three labels skl2onnx exports it as up to 67
    # nodes instead of 13, and they take 11 to 14 microseconds longer to run.
    svc = SVC(C=penalty, decision_function_shape="ovo", random_state=seed)
    calibrated = StackingClassifier(
        [("svc", svc)], LogisticRegression(), stack_method="decision_function"
    )
    if len(np.unique(y)) == 2:
        # skl2onnx exports two scores for two labels, where scikit-learn has one.
        calibrated = CalibratedClassifierCV(svc, ensemble=False)
    return make_pipeline(StandardScaler(), calibrated).fit(x, y)


def export(pipeline: Pipeline) -> bytes:
    """Exports the pipeline as ONNX: float32 [rows, 4] in, float32 [rows, 3] probabilities out."""
    with warnings.catch_warnings():
        # skl2onnx reads an attribute of SVC that scikit-learn 1.9 deprecates.
        warnings.filterwarnings("ignore", "Attribute `prob", FutureWarning)
        # Without ZipMap the probabilities are one array instead of one dictionary per row.
        return convert(pipeline, len(FEATURES), NAME, {"zipmap": False})


def train(
    seed: int = SEED, penalty: float = PENALTY, version: str = VERSION
) -> tuple[bytes, dict[str, Any]]:
    """Returns the trained model as ONNX, and its metadata."""
    split = load(seed)
    pipeline = fit(split.x_train, split.y_train, seed, penalty)
    return export(pipeline), {
        "name": NAME,
        "version": version,
        "parameters": {
            "scaler": "StandardScaler",
            "classifier": "SVC",
            "penalty": penalty,
            "multi_class": "one-vs-one",
            "calibration": "logistic regression",
            "seed": seed,
        },
        **describe(split, pipeline.predict_proba(split.x_test), LABELS),
    }
