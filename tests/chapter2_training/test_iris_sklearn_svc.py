"""iris_sklearn_svc: the same bytes from the same seed, and a run that says where they came from."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_iris

from chapter2_training.iris_sklearn_svc.reproduce import rows_equal
from chapter2_training.iris_sklearn_svc.train.iris import LABELS, evaluate, load
from chapter2_training.iris_sklearn_svc.train.model import fit
from tools.patterns import ROOT
from tools.results import load as load_results
from tools.server import Server, free_port, serve

PATTERN = ROOT / "chapter2_training/iris_sklearn_svc"
WEB_SINGLE = ROOT / "chapter4_serving_patterns/web_single_pattern"
MODEL_DB = ROOT / "chapter2_training/model_db"


def train(
    output: Path, store: str, *options: str, pattern: Path = PATTERN, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "train", "--output", str(output), *options],
        cwd=pattern,
        env=os.environ | {"MLFLOW_TRACKING_URI": store} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def files_of(models: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(models.iterdir())}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def embedded(workplace: Path) -> str:
    return f"sqlite:///{workplace}/tracking/mlflow.db"


@pytest.fixture(scope="module")
def models(workplace: Path, embedded: str) -> Path:
    trained = train(workplace / "models", embedded)
    assert trained.returncode == 0, trained.stderr
    return workplace / "models"


@pytest.fixture(scope="module")
def tracking(workplace: Path, models: Path, embedded: str) -> Iterator[Server]:
    """MLflow's server over the store in which the training of `models` is recorded."""
    port = free_port()
    store = ["--backend-store-uri", embedded, "--artifacts-destination", str(workplace / "files")]
    address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with serve(
        [sys.executable, "-m", "mlflow", "server", *store, *address],
        cwd=workplace,
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        ready_url=f"http://127.0.0.1:{port}/health",
        port=port,
    ) as server:
        yield server


def runs_of(server: Server, experiment: str = "iris_svc") -> list[dict[str, Any]]:
    """Returns the runs of an experiment, the newest first."""
    api = f"{server.url}/api/2.0/mlflow"
    query = {"experiment_name": experiment}
    found = httpx.get(f"{api}/experiments/get-by-name", params=query).json()
    ids = [found["experiment"]["experiment_id"]]
    answer = httpx.post(f"{api}/runs/search", json={"experiment_ids": ids}).json()
    runs: list[dict[str, Any]] = answer["runs"]
    return runs


def values(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: pair["value"] for pair in pairs}


def artifacts_of(server: Server, run: dict[str, Any]) -> set[str]:
    query = {"run_id": run["info"]["run_id"]}
    answer = httpx.get(f"{server.url}/api/2.0/mlflow/artifacts/list", params=query).json()
    return {file["path"] for file in answer["files"]}


def artifact_of(server: Server, run: dict[str, Any], path: str) -> bytes:
    query = {"run_id": run["info"]["run_id"], "path": path}
    answer = httpx.get(f"{server.url}/get-artifact", params=query)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_a_fresh_process_trains_the_same_bytes(
    models: Path, workplace: Path, embedded: str
) -> None:
    # What depends on the order of a set differs from process to process.
    assert train(workplace / "again", embedded, PYTHONHASHSEED="7").returncode == 0
    assert files_of(workplace / "again") == files_of(models)
    assert train(workplace / "other", embedded, "--seed", "1").returncode == 0
    assert files_of(workplace / "other")["model.onnx"] != files_of(models)["model.onnx"]


def test_the_serving_pattern_loads_the_same_model(
    models: Path, workplace: Path, embedded: str
) -> None:
    served = train(workplace / "served", embedded, pattern=WEB_SINGLE)
    assert served.returncode == 0, served.stderr
    assert files_of(workplace / "served") == files_of(models)


def test_onnx_answers_every_row_as_scikit_learn_does(models: Path) -> None:
    split = load()
    rows = load_iris().data.astype(np.float32)
    pipeline = fit(split.x_train, split.y_train)
    assert rows_equal(models / "model.onnx", rows, pipeline.predict_proba(rows)) == 150
    other = fit(*load(1)[:2], seed=1)
    assert rows_equal(models / "model.onnx", rows, other.predict_proba(rows)) < 150


def test_every_label_has_its_share_of_the_split() -> None:
    split = load()
    assert np.bincount(split.y_train).tolist() == [35, 35, 35]
    assert np.bincount(split.y_test).tolist() == [15, 15, 15]
    together = np.vstack([split.x_train, split.x_test])
    assert np.array_equal(np.sort(together, axis=0), np.sort(load_iris().data, axis=0).astype("f4"))


def test_precision_and_recall_are_means_over_the_labels() -> None:
    # Three rows of label 0 and one each of the others; every row is taken for label 0.
    scores = evaluate(np.array([[0.8, 0.1, 0.1]] * 5), np.array([0, 0, 0, 1, 2]))
    assert scores["accuracy"] == 0.6
    assert scores["precision_macro"] == round(0.6 / 3, 4)
    assert scores["recall_macro"] == round(1 / 3, 4)


def test_the_metadata_say_what_was_trained(models: Path) -> None:
    metadata = json.loads((models / "metadata.json").read_bytes())
    split = load()
    predicted = fit(split.x_train, split.y_train).predict(split.x_test)
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (split.y_test, predicted), 1)
    assert metadata["confusion_matrix"] == matrix.tolist()
    assert metadata["labels"] == LABELS
    assert metadata["parameters"]["seed"] == 0
    data = split.x_train.tobytes() + split.y_train.tobytes()
    assert metadata["training_data_sha256"] == hashlib.sha256(data).hexdigest()
    model = (models / "model.onnx").read_bytes()
    assert metadata["sha256"] == hashlib.sha256(model).hexdigest()


def test_the_run_is_in_the_embedded_store(tracking: Server, models: Path) -> None:
    metadata = json.loads((models / "metadata.json").read_bytes())
    run = runs_of(tracking)[-1]
    assert run["info"]["status"] == "FINISHED"
    parameters = values(run["data"]["params"])
    assert parameters["seed"] == "0"
    assert parameters["classifier"] == "SVC"
    assert parameters["training_data_sha256"] == metadata["training_data_sha256"]
    assert values(run["data"]["metrics"]) == metadata["metrics"]
    assert values(run["data"]["tags"])["model.sha256"] == metadata["sha256"]
    names = {"confusion_matrix.png", "metadata.json", "model.onnx"}
    assert artifacts_of(tracking, run) == names
    assert artifact_of(tracking, run, "model.onnx") == (models / "model.onnx").read_bytes()
    assert artifact_of(tracking, run, "confusion_matrix.png").startswith(b"\x89PNG")


def test_a_server_records_the_run_as_well(tracking: Server, workplace: Path) -> None:
    trained = train(workplace / "remote", tracking.url, "--seed", "2")
    assert trained.returncode == 0, trained.stderr
    run = runs_of(tracking)[0]
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", "seed 2")
    model = (workplace / "remote/model.onnx").read_bytes()
    assert artifact_of(tracking, run, "model.onnx") == model


def test_a_training_that_fails_is_a_failed_run(tracking: Server, workplace: Path) -> None:
    (workplace / "a file").touch()
    trained = train(workplace / "a file", tracking.url, "--seed", "3")
    assert trained.returncode != 0
    run = runs_of(tracking)[0]
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FAILED", "seed 3")


def test_without_its_server_nothing_is_trained_and_the_last_model_stays(
    models: Path, workplace: Path
) -> None:
    before = files_of(models)
    trained = train(models, f"http://127.0.0.1:{free_port()}", "--seed", "4")
    assert trained.returncode == 1
    assert "unset MLFLOW_TRACKING_URI" in trained.stderr
    assert "Traceback" not in trained.stderr
    assert files_of(models) == before


def test_two_first_runs_at_once_are_both_recorded(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/tracking/mlflow.db"
    trainings = [
        subprocess.Popen(
            [sys.executable, "-m", "train", "--output", str(tmp_path / name)],
            cwd=PATTERN,
            env=os.environ | {"MLFLOW_TRACKING_URI": store},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for name in ("one", "two")
    ]
    ends = [training.communicate()[1] for training in trainings]
    assert [training.returncode for training in trainings] == [0, 0], ends
    assert len(list((tmp_path / "tracking/artifacts").iterdir())) == 2


@pytest.mark.parametrize("seed", ["-1", "4294967296", "one", "1.5", ""])
def test_a_seed_that_is_none_is_refused_with_the_reason(
    seed: str, workplace: Path, embedded: str
) -> None:
    trained = train(workplace / "none", embedded, f"--seed={seed}")
    assert trained.returncode == 2
    assert "--seed" in trained.stderr
    assert not (workplace / "none").exists()


@pytest.fixture(scope="module")
def registry(workplace: Path) -> Iterator[Server]:
    port = free_port()
    with serve(
        [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)],
        cwd=MODEL_DB,
        env={"DATABASE_URL": f"sqlite:///{workplace}/registry.db"},
        ready_url=f"http://127.0.0.1:{port}/ready",
        port=port,
    ) as server:
        yield server


def register(url: str, models: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "train.register", "--url", url, "--models", str(models), *options],
        cwd=PATTERN,
        capture_output=True,
        text=True,
        check=False,
    )


def champion_of(server: Server) -> httpx.Response:
    return httpx.get(f"{server.url}/v0.1/api/models/champion/iris_svc")


def test_what_is_registered_and_promoted_is_the_champion(
    registry: Server, models: Path, workplace: Path, embedded: str
) -> None:
    for _ in range(2):
        registered = register(registry.url, models)
        assert registered.returncode == 0, registered.stderr
    experiments = httpx.get(f"{registry.url}/v0.1/api/experiments/all").json()
    assert experiments["total"] == 1
    assert champion_of(registry).status_code == 404

    metadata = json.loads((models / "metadata.json").read_bytes())
    assert register(registry.url, models, "--promote").returncode == 0
    champion = champion_of(registry).json()
    assert champion["evaluations"] == metadata["metrics"]
    assert champion["artifact_sha256"] == metadata["sha256"]
    path = Path(httpx.URL(champion["artifact_file_paths"]["onnx"]).path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == champion["artifact_sha256"]

    assert train(workplace / "challenger", embedded, "--seed", "5").returncode == 0
    promoted = register(registry.url, workplace / "challenger", "--promote")
    assert promoted.returncode == 0, promoted.stderr
    challenger = json.loads((workplace / "challenger/metadata.json").read_bytes())
    assert champion_of(registry).json()["artifact_sha256"] == challenger["sha256"]


def test_what_cannot_be_registered_says_why(registry: Server, models: Path, tmp_path: Path) -> None:
    gone = register(f"http://127.0.0.1:{free_port()}", models)
    assert (gone.returncode, gone.stderr.startswith("error: no model_db at")) == (1, True)
    untrained = register(registry.url, tmp_path)
    assert (untrained.returncode, "run make train" in untrained.stderr) == (1, True)
    elsewhere = register(f"{registry.url}/elsewhere", models)
    assert (elsewhere.returncode, " answers 404" in elsewhere.stderr) == (1, True)


def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    module = "chapter2_training.iris_sklearn_svc.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / PATTERN.name)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path / PATTERN.name)
    assert results.counts["distinct_models"] == 1
    assert results.counts["rows_equal"] == 150
    assert results.counts["dependents"] >= 1
    assert results.counts["dependents_with_another_model"] == 0
    assert results.control["distinct_models"] == 2
    assert results.control["rows_equal"] < 150
    assert results.control["dependents_with_another_model"] == results.counts["dependents"]
