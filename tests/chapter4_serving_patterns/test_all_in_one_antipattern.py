"""all_in_one_antipattern: every row gets scikit-learn's prediction, and nothing invalid gets a 200."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_iris

from chapter4_serving_patterns.all_in_one_antipattern.train.iris import load
from chapter4_serving_patterns.all_in_one_antipattern.train.model import fit
from tools.measure.results import load as load_results
from tools.measure.server import Server
from tools.measure.servers import run_uvicorn

ROOT = Path(__file__).resolve().parents[2]

PATTERN = ROOT / "chapter4_serving_patterns/all_in_one_antipattern"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    train(directory)
    return directory


def train(directory: Path) -> None:
    command = [sys.executable, "-m", "train", "--output", str(directory)]
    subprocess.run(command, cwd=PATTERN, check=True, capture_output=True)


def start(
    models: Path, app: str = "app.main:app", **settings: str
) -> AbstractContextManager[Server]:
    package = ".".join(PATTERN.relative_to(ROOT).parts)
    env = {"MODEL_DIRECTORY": str(models), **settings}
    return run_uvicorn(f"{package}.{app}", cwd=ROOT, env=env)


@pytest.fixture(scope="module")
def client(models: Path) -> Iterator[httpx.Client]:
    with start(models) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def test_every_row_of_iris_is_answered_as_scikit_learn_would(client: httpx.Client) -> None:
    rows = load_iris().data.astype(np.float32)
    split = load()
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    answer = client.post("/predict", json={"data": rows.tolist()}).json()["prediction"]
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
    labels = client.post("/predict/label", json={"data": rows.tolist()}).json()["prediction"]
    names = load_iris().target_names
    assert labels == [names[index] for index in expected.argmax(axis=1)]


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    if not (PATTERN / "models/metadata.json").exists():
        train(PATTERN / "models")
    module = "chapter4_serving_patterns.all_in_one_antipattern.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / "measure")]
    subprocess.run(command, cwd=PATTERN.parents[1], check=True, capture_output=True)
    results = load_results(tmp_path)
    assert results.counts == {"rows_answered": 150, "rows_equal": 150}
    # One row of each of the fifteen requests, and a prediction for the request without rows.
    assert results.control == {"rows_answered": 15, "rows_equal": 14}
