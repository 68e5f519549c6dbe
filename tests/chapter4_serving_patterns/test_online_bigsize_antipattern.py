"""online_bigsize_antipattern: the small model answers all while the big one answers two."""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from pytest import approx

from chapter4_serving_patterns.online_bigsize_antipattern.app.model import Model
from chapter4_serving_patterns.online_bigsize_antipattern.app.schema import FEATURES
from chapter4_serving_patterns.online_bigsize_antipattern.measure.models import Scored, difference
from chapter4_serving_patterns.online_bigsize_antipattern.train import model, svc
from tools.measure.results import load as load_results
from tools.measure.servers import run_uvicorn

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter4_serving_patterns/online_bigsize_antipattern"
PACKAGE = ".".join(PATTERN.relative_to(ROOT).parts)


@pytest.fixture(scope="module", autouse=True)
def models() -> Path:
    """Trains the models unless they are there already."""
    if not (PATTERN / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=PATTERN, check=True)
    return PATTERN / "models"


def test_the_small_model_predicts_as_scikit_learn_does(models: Path) -> None:
    x_train, y_train, x_test, _ = model.load()
    expected = svc.fit(x_train, y_train).predict_proba(x_test)
    predicted = Model(models, FEATURES).predict(x_test.tolist())
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-4)


def test_the_big_model_has_so_many_copies_and_is_less_accurate(models: Path) -> None:
    big, small = (
        json.loads((path / "metadata.json").read_bytes()) for path in (models / "big", models)
    )
    assert big["copies"] == 20_000
    assert big["labels"] == small["labels"]
    assert big["training_data_sha256"] == small["training_data_sha256"]
    assert big["metrics"]["accuracy"] < small["metrics"]["accuracy"]


@pytest.mark.parametrize("copies", ["0", "-1", "x", "1.5"])
def test_a_wrong_number_of_copies_is_refused(tmp_path: Path, copies: str) -> None:
    command = [sys.executable, "-m", "train", "--output", str(tmp_path), "--copies", copies]
    ended = subprocess.run(command, cwd=PATTERN, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "--copies" in ended.stderr
    assert [*tmp_path.iterdir()] == []


def test_one_program_serves_both(models: Path) -> None:
    names = {}
    for directory in (models / "big", models):
        env = {"MODEL_DIRECTORY": str(directory)}
        server = run_uvicorn(f"{PACKAGE}.app.main:app", cwd=ROOT, env=env)
        with server as running, httpx.Client(base_url=running.url, timeout=60) as client:
            sample = json.loads((PATTERN / "sample.json").read_bytes())
            answer = client.post("/predict/label", json=sample)
            assert answer.status_code == 200
            names[client.get("/metadata").json()["name"]] = answer.json()["prediction"]
    assert names.keys() == {"digits_ensemble", "digits_svc"}
    assert names["digits_ensemble"] == names["digits_svc"]


def scored(right: list[bool]) -> Scored:
    return Scored(np.array(right), row_ms=1.0, load_seconds=1.0, file_mb=1.0)


def test_the_interval_of_a_difference_holds_chance_and_no_more() -> None:
    often, rarely = scored(90 * [True] + 10 * [False]), scored(80 * [True] + 20 * [False])
    points, low, high = difference(often, rarely)
    assert points == approx(10)
    assert 2 < low < 10 < high < 18
    # The same rows are right: there is no difference, and no chance of one.
    assert difference(often, often) == (0, 0, 0)
    # As many are right, but others.
    points, low, high = difference(often, scored(10 * [False] + 90 * [True]))
    assert points == 0
    assert low < 0 < high


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_the_big_model_breaks_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "measure")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.holds
    assert (results.counts["in_time"], results.control["in_time"]) == (40, 2)
