# Copied from chapter4_serving_patterns/web_single_pattern/train/model.py
"""Fits the iris classifier, scores it on rows that it has not seen, and exports it as ONNX."""

import warnings
from typing import Any

import numpy as np
from sklearn.ensemble import StackingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from .convert import convert
from .iris import FEATURES, LABELS, SEED, describe, load

NAME = "iris_svc"
VERSION = "1"
# What an error costs in training, against a wider margin.
PENALTY = 1.0


def fit(x: np.ndarray, y: np.ndarray, seed: int = SEED, penalty: float = PENALTY) -> Pipeline:
    """Fits a scaler, a support vector classifier, and a calibration of its scores."""
    # A logistic regression turns the three scores of a row, one for each pair of labels, into
    # probabilities. CalibratedClassifierCV does that too, but skl2onnx writes it as up to 67
    # nodes, which take 11 to 14 microseconds longer to run than the 13 of this pipeline.
    svc = SVC(C=penalty, decision_function_shape="ovo", random_state=seed)
    calibrated = StackingClassifier(
        [("svc", svc)], LogisticRegression(), stack_method="decision_function"
    )
    return make_pipeline(StandardScaler(), calibrated).fit(x, y)


def export(pipeline: Pipeline) -> bytes:
    """Writes the pipeline as ONNX: float32 [rows, 4] in, float32 [rows, 3] probabilities out."""
    with warnings.catch_warnings():
        # The converter reads an attribute of SVC that scikit-learn 1.9 deprecates.
        warnings.filterwarnings("ignore", "Attribute `prob", FutureWarning)
        # Without zipmap the probabilities are one array, and not a dictionary a row.
        return convert(pipeline, len(FEATURES), NAME, {"zipmap": False})


def train(
    seed: int = SEED, penalty: float = PENALTY, version: str = VERSION
) -> tuple[bytes, dict[str, Any]]:
    """Returns the trained model as ONNX, and what there is to know about it."""
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
