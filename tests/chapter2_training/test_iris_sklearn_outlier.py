"""iris_sklearn_outlier: the outlier share is the share of rows scored below the threshold."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from chapter2_training.iris_sklearn_outlier.measure.reproduce import rows_equal
from chapter2_training.iris_sklearn_outlier.train.__main__ import main
from chapter2_training.iris_sklearn_outlier.train.model import (
    draw_noise,
    export,
    fit,
    load,
    outlier_share,
    score,
)
from tools.measure.results import load as load_results
from tools.read.patterns import ROOT

# MLflow's store uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PATTERN = ROOT / "chapter2_training/iris_sklearn_outlier"


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


def test_onnx_scores_every_row_as_scikit_learn_does(models: Path) -> None:
    rows = load()
    pipeline = fit(rows)
    for scored in (rows, draw_noise(rows)):
        expected = pipeline.decision_function(scored)[:, None]
        assert rows_equal(models / "model.onnx", scored, expected) == len(scored)


@pytest.mark.parametrize("nu", [0.01, 0.1, 0.3, 0.5, 0.8, 0.99])
def test_a_score_differs_from_scikit_learns_by_a_millionth_of_the_offset_at_most(nu: float) -> None:
    # A score is a sum of kernels minus the offset, which grows with nu, up to 71 at 0.99. Both have
    # seven digits in float32, so the error is relative to the offset, not to the score.
    rows, pipeline = load(), fit(load(), nu)
    noise, offset = draw_noise(rows), float(pipeline[-1].offset_[0])
    for scored, scores in zip((rows, noise), score(export(pipeline), rows, noise), strict=True):
        assert np.abs(scores - pipeline.decision_function(scored)).max() <= 1e-6 * offset


def test_the_shares_in_the_metadata_are_those_that_the_model_finds(models: Path) -> None:
    for nu in ("0.5", "0.8"):
        train(models.with_name(f"nu_{nu}"), "--nu", nu)
    for directory in (models, models.with_name("nu_0.5"), models.with_name("nu_0.8")):
        metadata = json.loads((directory / "metadata.json").read_bytes())
        session = onnxruntime.InferenceSession(directory / "model.onnx")
        for rows, name in (
            (load(), "outlier_share"),
            (draw_noise(load()), "outlier_share_of_noise"),
        ):
            (scores,) = session.run([metadata["output"]["name"]], {"X": rows})
            share = round(float((scores < metadata["threshold"]).mean()), 4)
            assert share == metadata["metrics"][name]


def test_a_score_on_the_border_is_not_an_outlier() -> None:
    assert outlier_share(np.array([-1.0, -1e-9, 0.0, 1.0])) == 0.5


@pytest.mark.parametrize("nu", [0.05, 0.1, 0.3, 0.5])
def test_nu_is_about_the_share_of_outliers(nu: float) -> None:
    scores = fit(load(), nu).decision_function(load())
    # The solver places the border within about a thousandth; closer rows may be on either side.
    assert (scores < -1e-3).mean() <= nu <= (scores < 1e-3).mean()
    assert abs(outlier_share(scores) - nu) <= 0.03


def test_the_histogram_holds_every_row(models: Path) -> None:
    histogram = json.loads((models / "metadata.json").read_bytes())["score_histogram"]
    assert sum(histogram["counts"]) == 150
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["edges"] == sorted(histogram["edges"])


@pytest.mark.parametrize("nu", ["0.01", "0.99"])
def test_the_ends_of_the_range_are_trained(nu: str, models: Path) -> None:
    train(models.with_name(nu), "--nu", nu)
    metadata = json.loads((models.with_name(nu) / "metadata.json").read_bytes())
    # Within the solver's tolerance, some rows near the border fall on the other side.
    assert abs(metadata["metrics"]["outlier_share"] - float(nu)) <= 0.05


@pytest.mark.parametrize(
    "nu", ["0", "1e-9", "0.0099", "0.991", "1", "-0.1", "1.1", "nan", "inf", "some", ""]
)
def test_a_nu_out_of_range_is_rejected_with_the_reason(
    nu: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path / "models", f"--nu={nu}")
    assert "--nu" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    module = "chapter2_training.iris_sklearn_outlier.measure"
    measure = tmp_path / PATTERN.name / "measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(measure)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path / PATTERN.name)
    assert results.counts["outliers"] == 14
    assert results.counts["named_too_many"] == 0
    assert results.counts["distinct_models"] == 1
    assert results.counts["rows_equal"] == 150
    assert results.control["named_too_many"] > 0
    assert results.control["distinct_models"] == 5
    assert results.control["rows_equal"] < 150
