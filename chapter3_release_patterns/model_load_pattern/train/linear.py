"""Fits two linear classifiers of the iris flowers, and exports them for the same interface."""

from typing import Any

import numpy as np
from onnx import TensorProto
from onnx.checker import check_model
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from .iris import LABELS, SEED, describe, load

VERSION = "1"
CLASSIFIERS = {
    "iris_logistic": LogisticRegression(max_iter=1_000),
    "iris_discriminant": LinearDiscriminantAnalysis(),
}


def export(name: str, classifier: Any) -> bytes:
    """Writes it as ONNX: float32 [rows, features] in, float32 [rows, 3] probabilities out."""
    graph = make_graph(
        [
            make_node("Gemm", ["X", "coefficients", "intercepts"], ["logits"], transB=1),
            make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        name,
        [make_tensor_value_info("X", TensorProto.FLOAT, ["rows", classifier.n_features_in_])],
        [make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", len(LABELS)])],
        [
            from_array(classifier.coef_.astype(np.float32), "coefficients"),
            from_array(classifier.intercept_.astype(np.float32), "intercepts"),
        ],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10)
    check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def train(name: str, seed: int = SEED) -> tuple[bytes, dict[str, Any]]:
    """Returns one of CLASSIFIERS, trained, as ONNX, and what there is to know about it."""
    split = load(seed)
    classifier = CLASSIFIERS[name].fit(split.x_train, split.y_train)
    return export(name, classifier), {
        "name": name,
        "version": VERSION,
        "parameters": {"classifier": type(classifier).__name__, "seed": seed},
        **describe(split, classifier.predict_proba(split.x_test), LABELS),
    }
