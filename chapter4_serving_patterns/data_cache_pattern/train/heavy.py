# Copied from chapter4_serving_patterns/sync_async_pattern/train/heavy.py with model as light->digits as light, from .model import->from .digits import
"""Fits the heavy classifier, scores it on held-out rows and exports it as ONNX."""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC
from sklearn.utils.extmath import softmax

from . import digits as light
from .digits import SIDE, draw_warps, evaluate, pixel_weights, tensor

# With this many warped copies of it, one row takes a few milliseconds; more copies take longer.
COPIES = 128
# The width of the kernel, for pixels from 0 to 16.
GAMMA = 0.1 / 16**2
PENALTY = 10
# A score is about 1 for the right digit and -1 for others; their softmax alone is too uncertain.
SHARPNESS = 6
# More copies hardly change the mean, and scikit-learn takes a tenth of a second for each.
EVALUATED_COPIES = 16


def fit(x: np.ndarray, y: np.ndarray) -> OneVsRestClassifier:
    """Fits a support vector machine per digit on the rows and on warped copies of them."""
    times = light.TRAINING_COPIES
    warps = draw_warps(1 + times * len(x), light.SEED + 1)[1:]
    copies = np.tile(x, (times, 1))
    warped = [row @ pixel_weights(warp) for row, warp in zip(copies, warps, strict=True)]
    classifier = OneVsRestClassifier(SVC(C=PENALTY, gamma=GAMMA))
    return classifier.fit(np.concatenate([x, np.array(warped)]), np.tile(y, 1 + times))


def predict(classifier: OneVsRestClassifier, warps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns the mean of the probabilities over all warped copies of the rows."""
    scores = [classifier.decision_function(x @ pixel_weights(warp)) for warp in warps]
    return np.asarray(np.mean([softmax(SHARPNESS * each) for each in scores], axis=0))


def constants_of(classifier: OneVsRestClassifier) -> dict[str, np.ndarray]:
    """Returns the numbers of the kernel exp(-GAMMA * |x - vector|^2), multiplied out, and so on."""
    machines = classifier.estimators_
    vectors = np.concatenate([machine.support_vectors_ for machine in machines])
    coefficients = np.concatenate([machine.dual_coef_[0] for machine in machines])
    digits = np.repeat(np.eye(len(machines)), [len(each.support_) for each in machines], axis=0)
    return {
        "minus_gamma": np.array(-GAMMA),
        "vectors": 2 * GAMMA * vectors.T,
        "vector_squares": -GAMMA * (vectors**2).sum(axis=1),
        "weights": SHARPNESS * coefficients[:, None] * digits,
        "biases": SHARPNESS * np.concatenate([machine.intercept_ for machine in machines]),
    }


def export(classifier: OneVsRestClassifier, warps: np.ndarray) -> bytes:
    """Exports the classifier as ONNX: float32 [rows, 64] in, float32 [rows, 10] probabilities out.

    Like the graph of the light model it scans over the warps, and applies one to all rows.
    """
    floats = constants_of(classifier) | {"warps": warps}
    constants = {name: value.astype(np.float32) for name, value in floats.items()} | {
        "first": np.array([0]),
        "last": np.array([1]),
        "one_image": np.array([1, 1, SIDE, SIDE]),
        "image_of_rows": np.array([1, -1, SIDE, SIDE]),
        "rows_of_pixels": np.array([-1, SIDE * SIDE]),
    }
    step = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["warp", "first"], ["theta"]),
            helper.make_node("AffineGrid", ["theta", "one_image"], ["grid"]),
            helper.make_node("GridSample", ["image", "grid"], ["warped_image"]),
            helper.make_node("Reshape", ["warped_image", "rows_of_pixels"], ["copy"]),
            helper.make_node("ReduceSumSquare", ["copy", "last"], ["copy_squares"]),
            helper.make_node("Mul", ["copy_squares", "minus_gamma"], ["squares"]),
            helper.make_node("Gemm", ["copy", "vectors", "vector_squares"], ["products"]),
            helper.make_node("Add", ["products", "squares"], ["exponents"]),
            helper.make_node("Exp", ["exponents"], ["kernel"]),
            helper.make_node("Gemm", ["kernel", "weights", "biases"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["copy_probabilities"]),
        ],
        "classify_copy",
        [tensor("warp", [2, 3])],
        [tensor("copy_probabilities", [None, len(light.LABELS)])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Reshape", ["X", "image_of_rows"], ["image"]),
            helper.make_node("Scan", ["warps"], ["each"], body=step, num_scan_inputs=1),
            helper.make_node("ReduceMean", ["each", "first"], ["probabilities"], keepdims=0),
        ],
        "digits_heavy",
        [tensor("X", [None, SIDE * SIDE])],
        [tensor("probabilities", [None, len(light.LABELS)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", light.OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=light.IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def train(copies: int, like: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Returns the heavy model as ONNX, and its metadata.

    `like` is the metadata of the light model, which has the same input, output and labels.
    """
    x_train, y_train, x_test, y_test = light.load()
    classifier, warps = fit(x_train, y_train), draw_warps(copies)
    return export(classifier, warps), like | {
        "name": "digits_heavy",
        "copies": copies,
        "prediction_sample": predict(classifier, warps, x_test[:1]).tolist(),
        "metrics": evaluate(predict(classifier, warps[:EVALUATED_COPIES], x_test), y_test),
        "metrics_without_copies": evaluate(predict(classifier, warps[:1], x_test), y_test),
    }
