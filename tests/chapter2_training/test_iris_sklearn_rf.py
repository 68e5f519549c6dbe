"""iris_sklearn_rf: the same forest from the same seed, and ONNX that answers as it does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

from chapter2_training.iris_sklearn_rf.measure.reproduce import rows_equal
from chapter2_training.iris_sklearn_rf.train.__main__ import main
from chapter2_training.iris_sklearn_rf.train.iris import load
from chapter2_training.iris_sklearn_rf.train.model import TREES, fit
from tools.measure.results import load as load_results
from tools.read.patterns import ROOT

PATTERN = ROOT / "chapter2_training/iris_sklearn_rf"


def train(output: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{output.parent}/tracking/mlflow.db"}
    return subprocess.run(
        [sys.executable, "-m", "train", "--output", str(output), *options],
        cwd=PATTERN,
        env=os.environ | store | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_bytes_hold_nothing_in_the_order_of_a_set(models: Path) -> None:
    domains = [opset.domain for opset in onnx.load(models / "model.onnx").opset_import]
    assert domains == ["", "ai.onnx.ml"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("training") / "models"
    trained = train(output)
    assert trained.returncode == 0, trained.stderr
    return output


def test_a_fresh_process_trains_the_same_bytes(models: Path) -> None:
    again, other = models.with_name("again"), models.with_name("other")
    # What depends on the order of a set differs from process to process.
    assert train(again, PYTHONHASHSEED="7").returncode == 0
    for name in ("model.onnx", "metadata.json"):
        assert (again / name).read_bytes() == (models / name).read_bytes()
    assert train(other, "--seed", "1").returncode == 0
    assert (other / "model.onnx").read_bytes() != (models / "model.onnx").read_bytes()


def rows_at_borders(forest: RandomForestClassifier, flowers: np.ndarray) -> np.ndarray:
    """Returns a flower for each side of each border of each tree, as near as float32 comes to it.

    A tree of scikit-learn has its borders in float64, and the exported one has them in float32.
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


def test_onnx_answers_every_row_as_scikit_learn_does(models: Path) -> None:
    split = load()
    flowers = load_iris().data.astype(np.float32)
    # Rows that are far from any flower.
    noise = np.random.default_rng(0).uniform(-5, 15, (1_000, 4)).astype(np.float32)
    forest = fit(split.x_train, split.y_train)
    for rows in (flowers, noise, rows_at_borders(forest, flowers)):
        expected = forest.predict_proba(rows)
        assert rows_equal(models / "model.onnx", rows, expected) == len(rows)
    other = fit(split.x_train, split.y_train, seed=1)
    assert rows_equal(models / "model.onnx", flowers, other.predict_proba(flowers)) < 150


def test_the_metadata_say_what_was_trained(models: Path) -> None:
    metadata = json.loads((models / "metadata.json").read_bytes())
    split = load()
    predicted = fit(split.x_train, split.y_train).predict(split.x_test)
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (split.y_test, predicted), 1)
    assert metadata["confusion_matrix"] == matrix.tolist()
    right = int(np.trace(matrix))
    assert metadata["metrics"]["accuracy"] == round(right / 45, 4)
    # One virginica is taken for a versicolor: the means over the labels are not the accuracy.
    assert metadata["metrics"]["precision_macro"] != metadata["metrics"]["accuracy"]
    assert metadata["parameters"] == {
        "classifier": "RandomForestClassifier",
        "trees": TREES,
        "seed": 0,
    }


@pytest.mark.parametrize("seed", ["-1", "4294967296", "many"])
def test_a_seed_that_is_none_is_refused_with_the_reason(
    seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # In this process: each of its own would import MLflow for seconds.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(sys, "argv", ["train", f"--output={tmp_path}/models", f"--seed={seed}"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--seed" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    module = "chapter2_training.iris_sklearn_rf.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / PATTERN.name)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path / PATTERN.name)
    assert results.counts == {"distinct_models": 1, "rows_equal": 150}
    assert results.control["distinct_models"] == 2
    assert results.control["rows_equal"] < 150
