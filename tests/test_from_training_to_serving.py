"""Follows a model through the chapters: train, register, promote, load, predict."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tools.measure.server import Server, ServerError
from tools.measure.servers import run_uvicorn
from tools.read.patterns import ROOT

pytestmark = pytest.mark.pattern(
    "chapter2_training/iris_binary",
    "chapter2_training/iris_sklearn_rf",
    "chapter2_training/iris_sklearn_svc",
    "chapter2_training/model_db",
    "chapter3_release_patterns/model_load_pattern",
)

TRAINERS = ROOT / "chapter2_training"
MODEL_LOAD = ROOT / "chapter3_release_patterns/model_load_pattern"
# The trainers register the files of this machine.
LOCAL = {"CHAMPION_STORES": '["file://"]'}
ROWS = {"data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]}


class Champion(NamedTuple):
    """The URL of a champion in the registry, its metadata and their file."""

    url: str
    metadata: dict[str, Any]
    file: Path


def run(module: str, directory: Path, *options: str, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-m", module, *options],
        cwd=directory,
        env=os.environ | environment,
        check=True,
        capture_output=True,
    )


def serving(models: Path) -> AbstractContextManager[Server]:
    """Runs the server of model_load_pattern with the model in a directory."""
    return run_uvicorn("app.main:app", cwd=MODEL_LOAD, env={"MODEL_DIRECTORY": str(models)})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    database = tmp_path_factory.mktemp("registry") / "registry.db"
    settings = {"DATABASE_URL": f"sqlite:///{database}"}
    with run_uvicorn("app.main:app", cwd=TRAINERS / "model_db", env=settings) as server:
        yield server


@pytest.mark.parametrize("trainer", ["iris_sklearn_svc", "iris_sklearn_rf"])
def test_the_champion_of_the_registry_is_served(
    trainer: str, registry: Server, tmp_path: Path
) -> None:
    models, served = tmp_path / "models", tmp_path / "served"
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    run("train", TRAINERS / trainer, "--output", str(models), **store)
    options = ["--url", registry.url, "--models", str(models), "--promote"]
    run("train.register", TRAINERS / trainer, *options)
    trained = json.loads((models / "metadata.json").read_bytes())

    champion = f"{registry.url}/v0.1/api/models/champion/{trained['name']}"
    run("app.load", MODEL_LOAD, CHAMPION_URL=champion, MODEL_DIRECTORY=str(served), **LOCAL)
    with serving(served) as server:
        assert httpx.get(f"{server.url}/metadata").json().items() >= trained.items()
        response = httpx.post(f"{server.url}/predict/label", json=ROWS).json()
        assert response == {"prediction": ["setosa", "virginica"]}


@pytest.fixture(scope="module")
def champion(registry: Server, tmp_path_factory: pytest.TempPathFactory) -> Champion:
    """A champion whose training directory was overwritten after the promotion."""
    directory = tmp_path_factory.mktemp("champion")
    models, store = directory / "models", f"sqlite:///{directory}/mlflow.db"
    trains = ["--output", str(models)]
    run("train", TRAINERS / "iris_binary", *trains, MLFLOW_TRACKING_URI=store)
    trained = json.loads((models / "metadata.json").read_bytes())
    options = ["--url", registry.url, "--models", str(models), "--promote"]
    run("train.register", TRAINERS / "iris_binary", *options)
    run("train", TRAINERS / "iris_binary", *trains, "--seed", "1", MLFLOW_TRACKING_URI=store)
    assert json.loads((models / "metadata.json").read_bytes()) != trained
    url = f"{registry.url}/v0.1/api/models/champion/iris_binary_virginica"
    address = httpx.get(url).json()["artifact_file_paths"]["onnx"]
    return Champion(url, trained, Path(httpx.URL(address).path))


def test_a_champion_can_be_loaded_after_another_training(
    champion: Champion, tmp_path: Path
) -> None:
    run("app.load", MODEL_LOAD, CHAMPION_URL=champion.url, MODEL_DIRECTORY=str(tmp_path), **LOCAL)
    with serving(tmp_path) as server:
        assert httpx.get(f"{server.url}/metadata").json().items() >= champion.metadata.items()


@pytest.mark.parametrize("name", ["metadata.json", "model.onnx"])
def test_a_champion_whose_file_has_changed_is_not_loaded(
    champion: Champion, tmp_path: Path, name: str
) -> None:
    file = champion.file.with_name(name)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(
            "app.load",
            MODEL_LOAD,
            CHAMPION_URL=champion.url,
            MODEL_DIRECTORY=str(tmp_path),
            **LOCAL,
        )
    file.write_bytes(content)
    assert b"the SHA-256 is" in failed.value.stderr
    with pytest.raises(ServerError), serving(tmp_path):
        pass


def test_the_models_of_three_labels_are_registered_with_their_own_files(
    registry: Server, tmp_path: Path
) -> None:
    models, store = tmp_path / "models", f"sqlite:///{tmp_path}/mlflow.db"
    digests = set()
    irises = ("setosa", "versicolor", "virginica")
    for iris in irises:
        options = ["--output", str(models), "--positive", iris]
        run("train", TRAINERS / "iris_binary", *options, MLFLOW_TRACKING_URI=store)
        options = ["--url", registry.url, "--models", str(models), "--project", "three"]
        run("train.register", TRAINERS / "iris_binary", *options)
    api = f"{registry.url}/v0.1/api"
    for row in httpx.get(f"{api}/models/project-name/three").json()["rows"]:
        path = f"{api}/experiments/model-id/{row['model_id']}"
        (experiment,) = httpx.get(path).json()["rows"]
        file = Path(httpx.URL(experiment["artifact_file_paths"]["onnx"]).path)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert digest == experiment["artifact_sha256"]
        digests.add(digest)
    assert len(digests) == len(irises)
