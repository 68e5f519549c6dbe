"""Trains the iris classifier and writes it as ONNX with the metadata that the server checks."""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
from onnx import TensorProto
from onnx.checker import check_model
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from rich.console import Console
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

ML = "ai.onnx.ml"
NAME = "iris_svc"
VERSION = "1"
SEED = 0
FEATURES = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
LABELS = ["setosa", "versicolor", "virginica"]
SAMPLE = [[5.1, 3.5, 1.4, 0.2]]


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the rows and labels of iris to train on, then those to test on."""
    iris = load_iris()
    x_train, x_test, y_train, y_test = train_test_split(
        iris.data.astype(np.float32),
        iris.target,
        test_size=0.3,
        stratify=iris.target,
        random_state=SEED,
    )
    return x_train, y_train, x_test, y_test


def fit(x: np.ndarray, y: np.ndarray) -> Pipeline:
    """Fits a scaler and, for each label, a support vector classifier and its calibration."""
    # Calibration works label by label. One SVC a label gives it those scores directly; the votes
    # of a multi-class SVC would be turned into them by a graph that takes twice as long to run.
    classifier = CalibratedClassifierCV(OneVsRestClassifier(SVC(random_state=SEED)), ensemble=False)
    return make_pipeline(StandardScaler(), classifier).fit(x, y)


def evaluate(pipeline: Pipeline, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Scores the fitted pipeline on rows that it has not seen."""
    probabilities = pipeline.predict_proba(x)
    return {
        "accuracy": round(accuracy_score(y, probabilities.argmax(axis=1)), 4),
        "log_loss": round(log_loss(y, probabilities), 4),
    }


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


def write(directory: Path, name: str, content: bytes) -> None:
    """Replaces a file as a whole, so that a server never reads half of one."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{name}.partial"
    partial.write_bytes(content)
    partial.replace(directory / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "models")
    output: Path = parser.parse_args().output

    x_train, y_train, x_test, y_test = load()
    pipeline = fit(x_train, y_train)
    metrics = evaluate(pipeline, x_test, y_test)
    model = export(pipeline)
    metadata = {
        "name": NAME,
        "version": VERSION,
        "file": "model.onnx",
        "sha256": hashlib.sha256(model).hexdigest(),
        "input": {"name": "X", "shape": [None, len(FEATURES)], "features": FEATURES},
        "output": {"name": "probabilities", "shape": [None, len(LABELS)]},
        "labels": LABELS,
        "sample": SAMPLE,
        "metrics": metrics,
        "training_data_sha256": hashlib.sha256(x_train.tobytes() + y_train.tobytes()).hexdigest(),
    }
    # The model comes first: metadata that is there always describes a model that is there.
    write(output, "model.onnx", model)
    write(output, "metadata.json", json.dumps(metadata, indent=2).encode())
    Console().print(f"{NAME} version {VERSION} is in {output}:", metrics)


if __name__ == "__main__":
    main()
