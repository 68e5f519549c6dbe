"""iris_binary: one model per iris, whose label 1 is that iris."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_iris

from chapter2_training.iris_binary.measure.reproduce import rows_equal
from chapter2_training.iris_binary.train.__main__ import main
from chapter2_training.iris_binary.train.iris import LABELS, load
from chapter2_training.iris_binary.train.model import fit, load_one_against_rest
from tools.measure.results import load as load_results
from tools.read.patterns import ROOT

# MLflow's store uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PATTERN = ROOT / "chapter2_training/iris_binary"


def train(output: Path, *options: str) -> None:
    """Runs `python -m train` in this process, because importing MLflow takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{output.parent}/tracking/mlflow.db")
        patch.setattr(sys, "argv", ["train", f"--output={output}", *options])
        main()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains the model of each iris into a directory of that name."""
    directory = tmp_path_factory.mktemp("training")
    for positive in LABELS:
        train(directory / positive, "--positive", positive)
    return directory


def metadata_of(directory: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_bytes())
    return metadata


@pytest.mark.parametrize("positive", LABELS)
def test_onnx_predicts_every_row_as_scikit_learn_does(models: Path, positive: str) -> None:
    split = load_one_against_rest(positive)
    rows = load_iris().data.astype(np.float32)
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    model = models / positive / "model.onnx"
    assert rows_equal(model, rows, expected) == 150
    assert rows_equal(model, rows, expected[:, ::-1]) == 0


@pytest.mark.parametrize("positive", LABELS)
def test_label_1_is_the_positive_iris(models: Path, positive: str) -> None:
    metadata = metadata_of(models / positive)
    assert metadata["labels"] == ["other", positive]
    assert metadata["positive"] == positive
    assert metadata["parameters"]["positive"] == positive
    session = onnxruntime.InferenceSession(models / positive / "model.onnx")
    iris = load_iris()
    (predicted,) = session.run(["probabilities"], {"X": iris.data.astype(np.float32)})
    is_positive = iris.target == LABELS.index(positive)
    assert predicted[is_positive, 1].mean() > 0.8
    assert predicted[~is_positive, 1].mean() < 0.2
    assert metadata["output"]["shape"] == [None, 2]


def test_the_three_models_hold_out_the_same_rows() -> None:
    splits = [load_one_against_rest(positive) for positive in LABELS]
    for split in splits:
        assert np.array_equal(split.x_test, load().x_test)
        assert np.bincount(split.y_test).tolist() == [30, 15]
    together = np.sum([split.y_test for split in splits], axis=0)
    assert together.tolist() == [1] * 45


def test_precision_and_recall_of_the_positive_iris_match_the_confusion_matrix(models: Path) -> None:
    metadata = metadata_of(models / "virginica")
    (_, false_positives), (false_negatives, true_positives) = metadata["confusion_matrix"]
    metrics = metadata["metrics"]
    found = round(true_positives / (true_positives + false_positives), 4)
    assert metrics["precision_positive"] == found
    assert metrics["recall_positive"] == round(true_positives / 15, 4)
    assert false_negatives + true_positives == 15
    assert metrics["recall_positive"] != metrics["accuracy"]


@pytest.mark.parametrize("options", [["--positive", "rose"], ["--positive", ""], ["--seed", "-1"]])
def test_an_invalid_option_is_rejected_with_the_reason(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path / "models", *options)
    assert options[0] in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    module = "chapter2_training.iris_binary.measure"
    measure = tmp_path / PATTERN.name / "measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(measure)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path / PATTERN.name)
    assert results.counts == {"distinct_models": 3, "rows_equal": 450}
    assert results.control == {"distinct_models": 12, "rows_equal": 0}
