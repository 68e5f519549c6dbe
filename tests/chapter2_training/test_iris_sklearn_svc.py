"""iris_sklearn_svc: the same bytes from the same seed, and a run that says where they came from."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_iris

from chapter2_training.iris_sklearn_svc.measure.reproduce import rows_equal
from chapter2_training.iris_sklearn_svc.train.__main__ import main
from chapter2_training.iris_sklearn_svc.train.iris import LABELS, evaluate, load
from chapter2_training.iris_sklearn_svc.train.model import fit
from tools.measure.results import load as load_results
from tools.measure.server import Server, free_port, serve
from tools.read.compose import load as load_compose
from tools.read.patterns import ROOT

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
    """Returns the files of the last training, without the copies of registered models."""
    return {path.name: path.read_bytes() for path in sorted(models.iterdir()) if path.is_file()}


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
    with mlflow_server(workplace, embedded) as server:
        yield server


@contextmanager
def mlflow_server(directory: Path, store: str) -> Iterator[Server]:
    """Runs MLflow's server for the hosts that the service of Compose answers."""
    port = free_port()
    command = load_compose(PATTERN).services["ui"].command
    hosts = command[command.index("--allowed-hosts") + 1]
    options = {
        "--backend-store-uri": store,
        "--artifacts-destination": str(directory / "files"),
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--allowed-hosts": hosts,
    }
    words = [word for option in options.items() for word in option]
    with serve(
        [sys.executable, "-m", "mlflow", "server", *words],
        cwd=directory,
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        ready_url=f"http://127.0.0.1:{port}/health",
        port=port,
        # The first start of a store takes its time where other tests run as well.
        deadline_seconds=120,
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


def test_a_model_that_cannot_be_written_is_a_failed_run_that_holds_it(
    tracking: Server, workplace: Path
) -> None:
    (workplace / "a file").touch()
    for output in ("a file", "a file/models"):
        trained = train(workplace / output, tracking.url, "--seed", "3")
        assert trained.returncode == 1
        assert f"error: no model can be written into {workplace / output}: " in trained.stderr
        assert "Traceback" not in trained.stderr
        run = runs_of(tracking)[0]
        assert (run["info"]["status"], run["info"]["run_name"]) == ("FAILED", "seed 3")
        sha256 = values(run["data"]["tags"])["model.sha256"]
        assert hashlib.sha256(artifact_of(tracking, run, "model.onnx")).hexdigest() == sha256


def test_a_store_that_is_damaged_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("A database begins with other bytes than these.")
    ended = train(tmp_path / "models", f"sqlite:///{tmp_path}/mlflow.db")
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"error: no run can be recorded at sqlite:///{tmp_path}/mlflow.db: ")
    assert "file is not a database" in line
    assert not (tmp_path / "models").exists()


# Trains as the pattern does, and waits for a line after the step that is named.
TRAIN_AND_WAIT = """
import sys
from functools import partial
from pathlib import Path
from train import model, recorded
from train.pictures import draw_confusion_matrix

def and_wait(step):
    def waiting(*arguments):
        result = step(*arguments)
        print("waiting", flush=True)
        sys.stdin.readline()
        return result
    return waiting

output, step = sys.argv[1:]
module = {"train": model, "write_model": recorded}[step]
setattr(module, step, and_wait(getattr(module, step)))
train = partial(model.train, 6)
recorded.train_recorded("lost", "seed 6", Path(output), train, draw_confusion_matrix)
"""


@pytest.mark.parametrize(("step", "written"), [("train", False), ("write_model", True)])
def test_a_server_that_dies_loses_neither_a_model_nor_its_run(
    step: str, written: bool, tmp_path: Path
) -> None:
    models, store = tmp_path / "models", f"sqlite:///{tmp_path}/mlflow.db"
    assert train(models, store).returncode == 0
    before = files_of(models)
    with mlflow_server(tmp_path, store) as server:
        training = subprocess.Popen(
            [sys.executable, "-c", TRAIN_AND_WAIT, str(models), step],
            cwd=PATTERN,
            env=os.environ | {"MLFLOW_TRACKING_URI": server.url, "PYTHONPATH": "."},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert training.stdout is not None
        assert training.stdout.readline() == "waiting\n"
        server.kill()
        output, errors = training.communicate("\n")
    assert (training.returncode, output) == (1, "")
    assert f"error: the run is not recorded to its end at {server.url}: " in errors
    assert "Traceback" not in errors
    assert (files_of(models) != before) is written
    state = "the model is written" if written else "no model is written"
    assert errors.endswith(f"; {state} into {models}\n")
    # What was recorded is there when the server is.
    with mlflow_server(tmp_path, store) as server:
        (run,) = runs_of(server, "lost")
        assert run["info"]["status"] == "RUNNING"
        if written:
            assert artifact_of(server, run, "model.onnx") == files_of(models)["model.onnx"]


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
    trainings = []
    for name in ("one", "two"):
        # MLflow's own lock is in the directory for temporary files, of which each pod has its own.
        (tmp_path / name).mkdir()
        training = subprocess.Popen(
            [sys.executable, "-m", "train", "--output", str(tmp_path / name)],
            cwd=PATTERN,
            env=os.environ | {"MLFLOW_TRACKING_URI": store, "TMPDIR": str(tmp_path / name)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        trainings.append(training)
    ends = [training.communicate()[1] for training in trainings]
    assert [training.returncode for training in trainings] == [0, 0], ends
    assert len(list((tmp_path / "tracking/artifacts").iterdir())) == 2


def test_the_page_answers_by_the_name_of_its_service_and_by_no_strangers(tracking: Server) -> None:
    # A name of somebody else that leads to this machine is how a page of theirs would read it.
    answers = {
        host: httpx.get(f"{tracking.url}/", headers={"Host": host}).status_code
        for host in ("ui:5000", "localhost:5000", "127.0.0.1:5000", "ui.example.com:5000")
    }
    assert list(answers.values()) == [200, 200, 200, 403]
    # A probe of Kubernetes has the address of the pod for a host.
    probe = httpx.get(f"{tracking.url}/health", headers={"Host": "10.1.2.3:5000"})
    assert probe.status_code == 200


@pytest.mark.parametrize("seed", ["-1", "4294967296", "one", "1.5", ""])
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


def version_of(models: Path) -> str:
    metadata = json.loads((models / "metadata.json").read_bytes())
    return f"{metadata['version']}.{metadata['sha256'][:12]}"


def experiment_of(server: Server, version: str) -> dict[str, Any]:
    path = f"/v0.1/api/experiments/model-version-id/{version}"
    (experiment,) = httpx.get(f"{server.url}{path}").json()["rows"]
    found: dict[str, Any] = experiment
    return found


def address_of(server: Server, version: str) -> str:
    return str(experiment_of(server, version)["artifact_file_paths"]["onnx"])


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
    assert path == models / champion["model_version_id"] / "model.onnx"
    assert files_of(path.parent) == files_of(models)

    assert train(workplace / "challenger", embedded, "--seed", "5").returncode == 0
    promoted = register(registry.url, workplace / "challenger", "--promote")
    assert promoted.returncode == 0, promoted.stderr
    challenger = json.loads((workplace / "challenger/metadata.json").read_bytes())
    assert champion_of(registry).json()["artifact_sha256"] == challenger["sha256"]


def test_another_clone_that_registers_the_same_model_says_where_it_is_now(
    registry: Server, models: Path, tmp_path: Path
) -> None:
    assert register(registry.url, models).returncode == 0
    shutil.copytree(models, tmp_path / "clone", ignore=shutil.ignore_patterns("1.*"))
    again = register(registry.url, tmp_path / "clone")
    assert again.returncode == 0, again.stderr
    version = version_of(models)
    where = address_of(registry, version)
    assert where == (tmp_path / "clone" / version / "model.onnx").as_uri()


def test_the_registry_names_the_address_that_is_given(
    registry: Server, models: Path, workplace: Path, embedded: str
) -> None:
    uri = f"s3://models/{version_of(models)}/model.onnx"
    registered = register(registry.url, models, "--artifact-uri", uri)
    assert registered.returncode == 0, registered.stderr
    assert address_of(registry, version_of(models)) == uri
    # This version is registered by the SHA-256 of its model, which the metadata do not have.
    other = register(registry.url, models, "--artifact-uri", "s3://models/metadata.json")
    assert (other.returncode, "another SHA-256" in other.stderr) == (1, True)
    assert address_of(registry, version_of(models)) == uri

    described = workplace / "described"
    assert train(described, embedded, "--seed", "7").returncode == 0
    registered = register(registry.url, described, "--artifact-uri", "s3://models/7/metadata.json")
    assert registered.returncode == 0, registered.stderr
    experiment = experiment_of(registry, version_of(described))
    digest = hashlib.sha256((described / "metadata.json").read_bytes()).hexdigest()
    assert experiment["artifact_sha256"] == digest


@pytest.mark.parametrize("uri", ["", "s3://models", "s3://models/x.onnx", "model.onnx/"])
def test_an_address_that_is_no_file_of_a_model_is_refused(
    uri: str, registry: Server, models: Path
) -> None:
    refused = register(registry.url, models, f"--artifact-uri={uri}")
    assert refused.returncode == 2
    assert "--artifact-uri ends in /model.onnx or /metadata.json" in refused.stderr


def test_a_model_that_its_metadata_do_not_describe_is_not_registered(
    registry: Server, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "models", ignore=shutil.ignore_patterns("1.*"))
    damaged = tmp_path / "models/model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    refused = register(registry.url, tmp_path / "models")
    assert (refused.returncode, "its SHA-256 is" in refused.stderr) == (1, True)
    assert files_of(tmp_path / "models").keys() == {"model.onnx", "metadata.json"}
    assert not list((tmp_path / "models").glob("1.*"))


def test_what_cannot_be_registered_says_why(registry: Server, models: Path, tmp_path: Path) -> None:
    gone = register(f"http://127.0.0.1:{free_port()}", models)
    assert (gone.returncode, gone.stderr.startswith("error: no model_db at")) == (1, True)
    untrained = register(registry.url, tmp_path)
    assert (untrained.returncode, "run make train" in untrained.stderr) == (1, True)
    for content in ("{}", "[]", "3", "no JSON"):
        (tmp_path / "model.onnx").touch()
        (tmp_path / "metadata.json").write_text(content)
        nothing = register(registry.url, tmp_path)
        assert (nothing.returncode, "Traceback" in nothing.stderr) == (1, False)
    nowhere = register("http://x:80a", models)
    assert (nowhere.returncode, len(nowhere.stderr.splitlines())) == (1, 1)
    assert nowhere.stderr.startswith("error: no model_db at http://x:80a, ")
    elsewhere = register(f"{registry.url}/elsewhere", models)
    assert (elsewhere.returncode, " answers 404" in elsewhere.stderr) == (1, True)


@pytest.mark.docker
@pytest.mark.timeout(1800)
def test_a_container_trains_the_bytes_that_a_process_trains(models: Path) -> None:
    compose = ["docker", "compose", "--project-directory", str(PATTERN)]
    subprocess.run([*compose, "build", "--quiet", "train"], check=True, capture_output=True)
    image = str(load_compose(PATTERN).services["train"].image)
    store = "MLFLOW_TRACKING_URI=sqlite:////scratch/mlflow.db"
    bounds = ["--read-only", "--tmpfs", "/tmp:mode=1777", "--tmpfs", "/scratch:mode=1777"]  # noqa: S108
    trains = "python -m train --output /scratch/models >&2 && cat /scratch/models/model.onnx"
    trained = subprocess.run(
        ["docker", "run", "--rm", *bounds, "--env", store, image, "sh", "-c", trains],
        capture_output=True,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    ours = hashlib.sha256((models / "model.onnx").read_bytes()).hexdigest()
    assert hashlib.sha256(trained.stdout).hexdigest() == ours


@pytest.mark.budget("measure --quick")
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
