"""Fits the models of the releases, and makes the larger one a quarter of its size."""

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.utils import Extractor
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from .convert import convert
from .digits import FEATURES, SEED, draw_warps, pixel_weights
from .release import NAME

HIDDEN = (256, 128)
# How many warped copies of each training row the network is trained on as well, and how often.
COPIES, EPOCHS = 24, 8
# Weights of at least so many numbers become int8; the biases are small and stay as they are.
LARGE = 1_000


def fit_regression(x: np.ndarray, y: np.ndarray) -> Pipeline:
    """Fits release 1: a logistic regression, as a first version may be."""
    return make_pipeline(MaxAbsScaler(), LogisticRegression(solver="newton-cg")).fit(x, y)


def fit_network(x: np.ndarray, y: np.ndarray) -> Pipeline:
    """Fits release 2: a neural network that has seen each digit drawn a little differently."""
    # The first warp changes nothing.
    warps = draw_warps(1 + COPIES, SEED)
    x_all = np.concatenate([np.rint(x @ pixel_weights(warp)) for warp in warps])
    y_all = np.tile(y, 1 + COPIES)
    scaler = MaxAbsScaler().fit(x_all)
    network = MLPClassifier(HIDDEN, batch_size=256, learning_rate_init=2e-3, random_state=SEED)
    for _ in range(EPOCHS):
        network.partial_fit(scaler.transform(x_all.astype(np.float32)), y_all, classes=np.unique(y))
    return make_pipeline(scaler, network)


def export(pipeline: Pipeline) -> bytes:
    """Converts to ONNX and keeps only what leads to the probabilities."""
    converted = convert(pipeline, len(FEATURES), NAME, {"zipmap": False})
    model = onnx.load_from_string(converted)
    whole = Extractor(model).extract_model(["X"], ["probabilities"])
    onnx.checker.check_model(whole, full_check=True)
    return bytes(whole.SerializeToString())


def quantise(content: bytes) -> bytes:
    """Stores the large weights as int8 with a scale for each column.

    `Cast` and `Mul` make them float32 again when a session starts, because ONNX Runtime folds what
    is constant. So the answers are as fast as before and equal on every processor.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    for weights in [each for each in graph.initializer if np.prod(each.dims) >= LARGE]:
        values, name = numpy_helper.to_array(weights), weights.name
        scale = (np.abs(values).max(axis=0, keepdims=True) / 127).astype(np.float32)
        whole = np.rint(values / scale).astype(np.int8)
        graph.initializer.remove(weights)
        graph.initializer.extend(
            [
                numpy_helper.from_array(whole, f"{name}_int8"),
                numpy_helper.from_array(scale, f"{name}_scale"),
            ]
        )
        nodes = [
            helper.make_node("Cast", [f"{name}_int8"], [f"{name}_cast"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name]),
        ]
        for node in reversed(nodes):
            graph.node.insert(0, node)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def accuracy_of(pipeline: Pipeline, x: np.ndarray, y: np.ndarray) -> float:
    return float(accuracy_score(y, pipeline.predict(x)))
