# Copied from chapter2_training/iris_sklearn_outlier/train/model.py
"""Fits a one-class support vector machine to iris, and exports its scores as ONNX."""

import os
from typing import Any

import numpy as np
from sklearn.datasets import load_iris
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from .artifact import digest
from .convert import convert

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

NAME = "iris_outlier"
VERSION = "1"
SEED = 0
FEATURES = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
SAMPLE = [[5.1, 3.5, 1.4, 0.2]]
# At most this share of the rows is outside the border, and at least this share is outside or on it
# (Schölkopf et al. 2001, "Estimating the Support of a High-Dimensional Distribution", proposition
# 3). A row on the border scores 0 within the solver's tolerance, so it may fall on either side.
NU = 0.1
# Outside this range the share found has little to do with `nu`: at 1e-9 the solver makes all 150
# rows outliers, and at 1 it finds no border.
LOWEST_NU, HIGHEST_NU = 0.01, 0.99
# The score of a row on the border; rows with lower scores are outliers.
THRESHOLD = 0.0
NOISE_ROWS = 1_000


def load() -> np.ndarray:
    """Returns all flowers as float32 [150, 4]; without labels, no rows are held out for testing."""
    return np.asarray(load_iris().data, np.float32)


def draw_noise(x: np.ndarray, seed: int = SEED) -> np.ndarray:
    """Draws uniform rows from a box twice as wide as the range of the flowers."""
    low, high = x.min(axis=0), x.max(axis=0)
    margin = (high - low) / 2
    random = np.random.default_rng(seed)
    return random.uniform(low - margin, high + margin, (NOISE_ROWS, x.shape[1])).astype(np.float32)


def fit(x: np.ndarray, nu: float = NU) -> Pipeline:
    """Fits a scaler and the one-class machine; neither is random."""
    return make_pipeline(StandardScaler(), OneClassSVM(nu=nu, gamma="auto")).fit(x)


def outlier_share(scores: np.ndarray) -> float:
    """Returns the share of scores below the threshold."""
    return float((scores < THRESHOLD).mean())


def export(pipeline: Pipeline) -> bytes:
    """Writes the pipeline as ONNX: float32 [rows, 4] in, float32 [rows, 1] scores out."""
    return convert(pipeline, len(FEATURES), NAME, None)


def score(model: bytes, *parts: np.ndarray) -> list[np.ndarray]:
    """Returns the float32 scores [rows] of the exported model for each part [rows, 4].

    A row on the border that scikit-learn scores just below 0 in float64 may score 0 here.
    """
    session = onnxruntime.InferenceSession(model)
    return [session.run(["scores"], {"X": rows})[0][:, 0] for rows in parts]


def train(nu: float = NU) -> tuple[bytes, dict[str, Any]]:
    """Returns the model as ONNX, and its metadata."""
    x = load()
    model = export(fit(x, nu))
    scores, scores_of_noise = score(model, x, draw_noise(x))
    counts, edges = np.histogram(scores.astype(float), bins=30)
    return model, {
        "name": NAME,
        "version": VERSION,
        "input": {"name": "X", "shape": [None, len(FEATURES)], "features": FEATURES},
        "output": {"name": "scores", "shape": [None, 1]},
        "threshold": THRESHOLD,
        "sample": SAMPLE,
        "parameters": {
            "scaler": "StandardScaler",
            "classifier": "OneClassSVM",
            "kernel": "rbf",
            "nu": nu,
            # Seeds the noise rows only; the training itself is not random.
            "seed": SEED,
        },
        "metrics": {
            "outlier_share": round(outlier_share(scores), 4),
            "outlier_share_of_noise": round(outlier_share(scores_of_noise), 4),
        },
        "score_histogram": {"counts": counts.tolist(), "edges": edges.round(6).tolist()},
        "training_data_sha256": digest(x),
    }
