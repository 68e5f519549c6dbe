"""iris_sklearn_rf: the same seed gives the same forest, and ONNX predicts like scikit-learn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from chapter2_training.iris_sklearn_rf.measure.reproduce import rows_equal
from chapter2_training.iris_sklearn_rf.train.__main__ import main
from chapter2_training.iris_sklearn_rf.train.iris import load
from chapter2_training.iris_sklearn_rf.train.model import fit
from tools.measure.results import load as load_results
from tools.read.patterns import ROOT

# MLflow's store uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PATTERN = ROOT / "chapter2_training/iris_sklearn_rf"


def train(output: Path, *options: str) -> None:
    """Runs `python -m train` in this process, because importing MLflow takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output.parent}/tracking/mlflow.db")
        patch.setattr(sys, "argv", ["train", f"--output={output}", *options])
        main()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("training") / "models"
    train(output)
    return output


def test_the_bytes_hold_nothing_in_the_order_of_a_set(models: Path) -> None:
    domains = [opset.domain for opset in onnx.load(models / "model.onnx").opset_import]
    assert domains == ["", "ai.onnx.ml"]


def rows_at_borders(forest: RandomForestClassifier, flowers: np.ndarray) -> np.ndarray:
    """Returns flowers on and next to each threshold of each tree, as close as float32 allows.

    Thresholds are float64 in scikit-learn, and float32 in the exported forest.
    """
    rows: list[np.ndarray] = []
    for tree in (estimator.tree_ for estimator in forest.estimators_):
        for node in np.flatnonzero(tree.feature >= 0):
            border = np.float32(tree.threshold[node])
            flower = flowers[len(rows) % len(flowers)]
            for value in (np.nextafter(border, -np.inf), border, np.nextafter(border, np.inf)):
                row = flower.copy()
                row[tree.feature[node]] = value
                rows.append(row)
    return np.array(rows)


def test_onnx_predicts_every_row_as_scikit_learn_does(models: Path) -> None:
    split = load()
    flowers = load_iris().data.astype(np.float32)
    # Rows far from any flower.
    noise = np.random.default_rng(0).uniform(-5, 15, (1_000, 4)).astype(np.float32)
    forest = fit(split.x_train, split.y_train)
    for rows in (flowers, noise, rows_at_borders(forest, flowers)):
        expected = forest.predict_proba(rows)
        assert rows_equal(models / "model.onnx", rows, expected) == len(rows)
    other = fit(split.x_train, split.y_train, seed=1)
    assert rows_equal(models / "model.onnx", flowers, other.predict_proba(flowers)) < 150


def test_only_labels_that_tie_differ_from_those_of_scikit_learn(models: Path) -> None:
    split = load()
    forest = fit(split.x_train, split.y_train)
    trees = [estimator.tree_ for estimator in forest.estimators_]
    random = np.random.default_rng(0)
    thresholds = [
        np.unique(np.concatenate([tree.threshold[tree.feature == feature] for tree in trees]))
        for feature in range(forest.n_features_in_)
    ]
    columns = [random.choice(values.astype(np.float32), 200_000) for values in thresholds]
    rows = np.stack(columns, axis=1)
    expected = forest.predict_proba(rows)
    assert rows_equal(models / "model.onnx", rows, expected) == len(rows)
    session = onnxruntime.InferenceSession(models / "model.onnx")
    (predicted,) = session.run(["probabilities"], {"X": rows})
    differ = predicted.argmax(axis=1) != expected.argmax(axis=1)
    highest = np.sort(expected[differ], axis=1)[:, -2:]
    assert differ.sum() == 75
    assert highest[:, 0] == pytest.approx(highest[:, 1], abs=1e-9)


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    module = "chapter2_training.iris_sklearn_rf.measure"
    measure = tmp_path / PATTERN.name / "measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(measure)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path / PATTERN.name)
    assert results.counts == {"distinct_models": 1, "rows_equal": 150}
    assert results.control["distinct_models"] == 5
    assert results.control["rows_equal"] < 150
