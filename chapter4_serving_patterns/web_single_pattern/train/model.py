"""Fits the iris classifier, scores it on rows that it has not seen, and exports it as ONNX."""

from typing import Any

import numpy as np
from onnx import TensorProto
from onnx.checker import check_model
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from sklearn.calibration import CalibratedClassifierCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from .iris import FEATURES, LABELS, SEED, describe, load

ML = "ai.onnx.ml"
NAME = "iris_svc"
VERSION = "1"
# What an error costs in training, against a wider margin.
PENALTY = 1.0


def fit(x: np.ndarray, y: np.ndarray, seed: int = SEED, penalty: float = PENALTY) -> Pipeline:
    """Fits a scaler and, for each label, a support vector classifier and its calibration."""
    # Calibration works label by label. One SVC a label gives it those scores directly; the votes
    # of a multi-class SVC would be turned into them by a graph that takes twice as long to run.
    svc = SVC(C=penalty, random_state=seed)
    classifier = CalibratedClassifierCV(OneVsRestClassifier(svc), ensemble=False)
    return make_pipeline(StandardScaler(), classifier).fit(x, y)


def export(pipeline: Pipeline) -> bytes:
    """Writes the pipeline as ONNX: float32 [rows, 4] in, float32 [rows, 3] probabilities out.

    skl2onnx would do it in one line and 52 nodes. A model this small spends its time between its
    nodes, so these 10, which compute the same, take less than half as long.
    """
    scaler, classifier = pipeline.named_steps.values()
    (calibrated,) = classifier.calibrated_classifiers_
    slopes = [-calibrator.a_ for calibrator in calibrated.calibrators]
    intercepts = [-calibrator.b_ for calibrator in calibrated.calibrators]

    scale = 1 / scaler.scale_
    nodes = [make_node("Scaler", ["X"], ["x"], domain=ML, offset=scaler.mean_, scale=scale)]
    for label, svc in zip(LABELS, calibrated.estimator.estimators_, strict=True):
        # The score of a binary SVC is computed as a support vector regression is.
        score = make_node(
            "SVMRegressor",
            ["x"],
            [label],
            domain=ML,
            kernel_type="RBF",
            kernel_params=[svc._gamma, 0.0, 0.0],
            support_vectors=svc.support_vectors_.ravel(),
            coefficients=svc.dual_coef_.ravel(),
            n_supports=len(svc.support_vectors_),
            rho=svc.intercept_,
        )
        nodes.append(score)
    nodes += [
        make_node("Concat", LABELS, ["scores"], axis=1),
        make_node("Mul", ["scores", "slopes"], ["sloped"]),
        make_node("Add", ["sloped", "intercepts"], ["logits"]),
        make_node("Sigmoid", ["logits"], ["each"]),
        make_node("ReduceSum", ["each", "axes"], ["sum"]),
        make_node("Div", ["each", "sum"], ["probabilities"]),
    ]
    graph = make_graph(
        nodes,
        NAME,
        [make_tensor_value_info("X", TensorProto.FLOAT, ["rows", len(FEATURES)])],
        [make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", len(LABELS)])],
        [
            from_array(np.array(slopes, np.float32), "slopes"),
            from_array(np.array(intercepts, np.float32), "intercepts"),
            from_array(np.array([1]), "axes"),
        ],
    )
    model = make_model(
        graph, opset_imports=[make_opsetid("", 21), make_opsetid(ML, 3)], ir_version=10
    )
    check_model(model, full_check=True)
    return bytes(model.SerializeToString())


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
            "multi_class": "one-vs-rest",
            "calibration": "sigmoid",
            "seed": seed,
        },
        **describe(split, pipeline.predict_proba(split.x_test), LABELS),
    }
