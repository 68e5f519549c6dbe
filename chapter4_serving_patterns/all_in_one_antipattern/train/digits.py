# Copied from chapter4_serving_patterns/asynchronous_pattern/train/model.py
"""Fits the digits classifier, scores it on held-out rows and exports it as ONNX."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from .artifact import digest

NAME = "digits_ensemble"
VERSION = "1"
SEED = 0
SIDE = 8
FEATURES = [f"pixel_{row}_{column}" for row in range(SIDE) for column in range(SIDE)]
LABELS = [str(digit) for digit in range(10)]
# With this many copies one row takes about 10 ms; the time grows with their number.
COPIES = 2_000
# How many warped copies of each training row are trained on as well.
TRAINING_COPIES = 4
# Standard deviations of the warps: angle in radians, scale factor, shift in half images.
TURN, STRETCH, SHIFT = 0.08, 0.05, 0.06
# More copies hardly change the mean, and scikit-learn takes a millisecond for each.
EVALUATED_COPIES = 200
# The first opset with AffineGrid, and the file format of the same year.
OPSET = 20
IR_VERSION = 9


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows and labels for training, then those for testing."""
    digits = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        digits.data.astype(np.float32),
        digits.target,
        test_size=0.3,
        stratify=digits.target,
        random_state=SEED,
    )
    return x_train, y_train, x_test, y_test


def draw_warps(count: int, seed: int = SEED) -> np.ndarray:
    """Draws affine warps [count, 2, 3] that rotate, scale and shift; the first is the identity."""
    random = np.random.default_rng(seed)
    angle = random.normal(0, TURN, count)
    scale = random.normal(1, STRETCH, count)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    shift_x, shift_y = random.normal(0, SHIFT, (2, count))
    warps = np.array([[cosine, -sine, shift_x], [sine, cosine, shift_y]]).transpose(2, 0, 1)
    warps[0] = np.eye(2, 3)
    return warps.astype(np.float32)


def pixel_weights(warp: np.ndarray) -> np.ndarray:
    """Returns a warp as a matrix [pixels, pixels]: rows of pixels @ matrix = warped rows.

    Like ONNX's GridSample, it interpolates between the four nearest pixels, with black around the
    image.
    """
    centres = (2 * np.arange(SIDE) + 1) / SIDE - 1
    y, x = np.meshgrid(centres, centres, indexing="ij")
    places = warp @ np.stack([x.ravel(), y.ravel(), np.ones(SIDE * SIDE)])
    columns, rows = ((places + 1) * SIDE - 1) / 2
    weights_x = np.maximum(0, 1 - np.abs(columns - np.arange(SIDE)[:, None]))
    weights_y = np.maximum(0, 1 - np.abs(rows - np.arange(SIDE)[:, None]))
    weights = np.einsum("yp,xp->yxp", weights_y, weights_x)
    return np.reshape(weights, (SIDE * SIDE, SIDE * SIDE))


def fit(x: np.ndarray, y: np.ndarray) -> Pipeline:
    """Fits a scaler and a logistic regression on the rows and on warped copies of them."""
    warps = draw_warps(1 + TRAINING_COPIES * len(x), SEED + 1)[1:]
    copies = np.tile(x, (TRAINING_COPIES, 1))
    warped = [row @ pixel_weights(warp) for row, warp in zip(copies, warps, strict=True)]
    x_all = np.concatenate([x, np.array(warped, np.float32)])
    # This solver takes few large steps. With many small ones, the threads of BLAS wait for each
    # other when the machine is busy, and 1 s becomes 20.
    classifier = LogisticRegression(C=10, solver="newton-cg")
    return make_pipeline(MaxAbsScaler(), classifier).fit(x_all, np.tile(y, 1 + TRAINING_COPIES))


def predict(pipeline: Pipeline, warps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the mean of the probabilities over all warped copies of the rows."""
    total = sum(pipeline.predict_proba(x @ pixel_weights(warp)) for warp in warps)
    return np.asarray(total) / len(warps)


def evaluate(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Scores the probabilities of held-out rows."""
    return {
        "accuracy": round(accuracy_score(y, probabilities.argmax(axis=1)), 4),
        "log_loss": round(log_loss(y, probabilities), 4),
    }


def export(pipeline: Pipeline, warps: np.ndarray) -> bytes:
    """Exports the ensemble as ONNX: float32 [rows, 64] in, float32 [rows, 10] probabilities out.

    The graph scans over the warps; each step applies one warp to all rows and classifies them. It
    is written by hand because skl2onnx converts estimators, and scikit-learn has none for warps.
    """
    scaler, classifier = pipeline.named_steps.values()
    constants = {
        "warps": warps,
        "first": np.array([0]),
        "one_image": np.array([1, 1, SIDE, SIDE]),
        "image_of_rows": np.array([1, -1, SIDE, SIDE]),
        "rows_of_pixels": np.array([-1, SIDE * SIDE]),
        # The scaler only divides each pixel by a number, so the coefficients include it.
        "weights": (classifier.coef_ / scaler.scale_).T.astype(np.float32),
        "biases": classifier.intercept_.astype(np.float32),
    }
    step = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["warp", "first"], ["theta"]),
            helper.make_node("AffineGrid", ["theta", "one_image"], ["grid"]),
            # The rows become the channels of one image, because all get the same warp.
            helper.make_node("GridSample", ["image", "grid"], ["warped_image"]),
            helper.make_node("Reshape", ["warped_image", "rows_of_pixels"], ["copy"]),
            helper.make_node("Gemm", ["copy", "weights", "biases"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["copy_probabilities"]),
        ],
        "classify_copy",
        [tensor("warp", [2, 3])],
        [tensor("copy_probabilities", [None, len(LABELS)])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["X", "image_of_rows"], ["image"]),
            helper.make_node("Scan", ["warps"], ["each"], body=step, num_scan_inputs=1),
            helper.make_node("ReduceMean", ["each", "first"], ["probabilities"], keepdims=0),
        ],
        NAME,
        [tensor("X", [None, len(FEATURES)])],
        [tensor("probabilities", [None, len(LABELS)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def tensor(name: str, shape: list[int | None]) -> onnx.ValueInfoProto:
    """Describes an input or output of the graph."""
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def train(copies: int = COPIES) -> tuple[bytes, dict[str, Any]]:
    """Returns the model with this many copies per row as ONNX, and its metadata."""
    x_train, y_train, x_test, y_test = load()
    pipeline = fit(x_train, y_train)
    warps = draw_warps(copies)
    return export(pipeline, warps), {
        "name": NAME,
        "version": VERSION,
        "input": {"name": "X", "shape": [None, len(FEATURES)], "features": FEATURES},
        "output": {"name": "probabilities", "shape": [None, len(LABELS)]},
        "labels": LABELS,
        "copies": len(warps),
        "sample": x_test[:1].tolist(),
        # The names of the book, for an API that does not load the model.
        "data_type": "float32",
        "data_structure": f"(1,{len(FEATURES)})",
        "data_sample": x_test[:1].tolist(),
        "prediction_type": "float32",
        "prediction_structure": f"(1,{len(LABELS)})",
        "prediction_sample": predict(pipeline, warps, x_test[:1]).tolist(),
        "metrics": evaluate(predict(pipeline, warps[:EVALUATED_COPIES], x_test), y_test),
        "metrics_without_copies": evaluate(predict(pipeline, warps[:1], x_test), y_test),
        "training_data_sha256": digest(x_train, y_train),
    }
