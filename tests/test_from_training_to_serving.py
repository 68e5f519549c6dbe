"""Follows a model through the chapters: trained, registered, promoted, loaded, asked."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tools.patterns import ROOT
from tools.server import Server, ServerError, free_port, serve

TRAINERS = ROOT / "chapter2_training"
MODEL_LOAD = ROOT / "chapter3_release_patterns/model_load_pattern"
ROWS = {"data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]}


def run(module: str, directory: Path, *options: str, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=directory,
        env=os.environ | environment,
        check=True,
        capture_output=True,
    )


def uvicorn(directory: Path, **environment: str) -> Iterator[Server]:
    port = free_port()
    with serve(
        [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)],
        cwd=directory,
        env=environment,
        ready_url=f"http://127.0.0.1:{port}/ready",
        port=port,
    ) as server:
        yield server


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    database = tmp_path_factory.mktemp("registry") / "registry.db"
    yield from uvicorn(TRAINERS / "model_db", DATABASE_URL=f"sqlite:///{database}")


@pytest.mark.parametrize("trainer", ["iris_sklearn_svc", "iris_sklearn_rf"])
def test_the_champion_of_the_registry_is_what_answers(
    trainer: str, registry: Server, tmp_path: Path
) -> None:
    models, served = tmp_path / "models", tmp_path / "served"
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run("train", TRAINERS / trainer, "--output", str(models), **store)
    options = ["--url", registry.url, "--models", str(models), "--promote"]
    run("train.register", TRAINERS / trainer, *options)
    trained = json.loads((models / "metadata.json").read_bytes())

    champion = f"{registry.url}/v0.1/api/models/champion/{trained['name']}"
    run("app.load", MODEL_LOAD, CHAMPION_URL=champion, MODEL_DIRECTORY=str(served))
    for server in uvicorn(MODEL_LOAD, MODEL_DIRECTORY=str(served)):
        assert httpx.get(f"{server.url}/metadata").json() == trained
        answer = httpx.post(f"{server.url}/predict/label", json=ROWS).json()
        assert answer == {"prediction": ["setosa", "virginica"]}


def test_a_champion_whose_file_has_changed_is_not_loaded(registry: Server, tmp_path: Path) -> None:
    models, served = tmp_path / "models", tmp_path / "served"
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run("train", TRAINERS / "iris_binary", "--output", str(models), **store)
    options = ["--url", registry.url, "--models", str(models), "--promote"]
    run("train.register", TRAINERS / "iris_binary", *options)
    # Trained again into the same place, as somebody would who does not know of the registry.
    run("train", TRAINERS / "iris_binary", "--output", str(models), "--seed", "1", **store)

    champion = f"{registry.url}/v0.1/api/models/champion/iris_binary_virginica"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run("app.load", MODEL_LOAD, CHAMPION_URL=champion, MODEL_DIRECTORY=str(served))
    assert b"the SHA-256 is" in failed.value.stderr
    with pytest.raises(ServerError):
        next(uvicorn(MODEL_LOAD, MODEL_DIRECTORY=str(served)))
