"""iris_sklearn_svc: the same seed gives the same bytes, and a run records how they were made."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
from filelock import FileLock
from mlflow.entities import Run
from playwright.sync_api import expect
from sklearn.datasets import load_iris

from chapter2_training.iris_sklearn_svc.measure.reproduce import rows_equal
from chapter2_training.iris_sklearn_svc.train import __main__ as training
from chapter2_training.iris_sklearn_svc.train import model as train_model
from chapter2_training.iris_sklearn_svc.train import recorded, tracking
from chapter2_training.iris_sklearn_svc.train import register as registering
from chapter2_training.iris_sklearn_svc.train.artifact import write_artifact
from chapter2_training.iris_sklearn_svc.train.iris import LABELS, evaluate, load
from chapter2_training.iris_sklearn_svc.train.model import fit
from chapter2_training.iris_sklearn_svc.train.pictures import draw_confusion_matrix
from tests.browser import PATIENCE_MILLISECONDS, needs_browser, run_browser
from tools.measure.results import load as load_results
from tools.measure.server import Server, serve
from tools.measure.servers import run_uvicorn
from tools.read.compose import load as load_compose
from tools.read.patterns import ROOT, patterns
from tools.run.ports import free_port

# MLflow's store uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PATTERN = ROOT / "chapter2_training/iris_sklearn_svc"
MODEL_DB = ROOT / "chapter2_training/model_db"


def train(output: Path, store: str, *options: str) -> None:
    """Runs `python -m train` in this process, because importing MLflow takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setattr(sys, "argv", ["train", f"--output={output}", *options])
        training.main()


def files_of(models: Path) -> dict[str, bytes]:
    """Returns the files of the latest model, without the copies of registered models."""
    return {path.name: path.read_bytes() for path in sorted(models.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def embedded(workplace: Path) -> str:
    return f"sqlite:///{workplace}/tracking/mlflow.db"


@pytest.fixture(scope="module")
def models(workplace: Path, embedded: str) -> Path:
    train(workplace / "models", embedded)
    return workplace / "models"


@contextmanager
def mlflow_server(directory: Path, store: str) -> Iterator[Server]:
    """Runs MLflow's server with the allowed hosts of the Compose service."""
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
        # Two processes import MLflow, one after the other.
        deadline_seconds=120,
    ) as server:
        yield server


def newest_run(store: str, experiment: str = "iris_svc") -> Run:
    client = mlflow.MlflowClient(store)
    found = client.get_experiment_by_name(experiment)
    assert found
    run: Run = client.search_runs([found.experiment_id])[0]
    return run


def artifacts_of(store: str, run: Run) -> set[str]:
    found = mlflow.MlflowClient(store).list_artifacts(run.info.run_id)
    return {file.path for file in found}


def artifact_of(store: str, run: Run, path: str, directory: Path) -> bytes:
    client = mlflow.MlflowClient(store)
    return Path(client.download_artifacts(run.info.run_id, path, str(directory))).read_bytes()


def test_a_fresh_process_trains_the_same_bytes(
    models: Path, workplace: Path, embedded: str
) -> None:
    subprocess.run(
        [sys.executable, "-m", "train", "--output", str(workplace / "again")],
        cwd=PATTERN,
        # Anything that depends on the order of a set differs between hash seeds.
        env=os.environ | {"MLFLOW_TRACKING_URI": embedded, "PYTHONHASHSEED": "7"},
        check=True,
        capture_output=True,
    )
    assert files_of(workplace / "again") == files_of(models)
    train(workplace / "other", embedded, "--seed", "1")
    assert files_of(workplace / "other")["model.onnx"] != files_of(models)["model.onnx"]


def test_onnx_predicts_every_row_as_scikit_learn_does(models: Path) -> None:
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
    # Three rows of label 0 and one of each other label; all are predicted as label 0.
    scores = evaluate(np.array([[0.8, 0.1, 0.1]] * 5), np.array([0, 0, 0, 1, 2]))
    assert scores["accuracy"] == 0.6
    assert scores["precision_macro"] == round(0.6 / 3, 4)
    assert scores["recall_macro"] == round(1 / 3, 4)


def test_the_metadata_describe_the_model(models: Path) -> None:
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


def test_the_run_is_in_the_embedded_store(models: Path, embedded: str, tmp_path: Path) -> None:
    train(models, embedded)
    metadata = json.loads((models / "metadata.json").read_bytes())
    run = newest_run(embedded)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "seed 0")
    assert (run.data.params["seed"], run.data.params["classifier"]) == ("0", "SVC")
    assert run.data.params["training_data_sha256"] == metadata["training_data_sha256"]
    assert run.data.metrics == metadata["metrics"]
    assert run.data.tags["model.sha256"] == metadata["sha256"]
    names = {"confusion_matrix.png", "metadata.json", "model.onnx"}
    assert artifacts_of(embedded, run) == names
    model = artifact_of(embedded, run, "model.onnx", tmp_path)
    assert model == (models / "model.onnx").read_bytes()
    picture = artifact_of(embedded, run, "confusion_matrix.png", tmp_path)
    assert picture.startswith(b"\x89PNG")


def test_if_the_model_cannot_be_written_the_run_fails_but_holds_it(
    embedded: str, models: Path, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    for output in ("a file", "a file/models"):
        reason = f"error: cannot write into {tmp_path / output}: "
        with pytest.raises(SystemExit, match=reason):
            train(tmp_path / output, embedded, "--seed", "3")
        run = newest_run(embedded)
        assert (run.info.status, run.info.run_name) == ("FAILED", "seed 3")
        model = artifact_of(embedded, run, "model.onnx", tmp_path)
        assert hashlib.sha256(model).hexdigest() == run.data.tags["model.sha256"]


def test_a_damaged_store_gives_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("This is not a SQLite database.")
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "models", f"sqlite:///{tmp_path}/mlflow.db")
    (line,) = str(ended.value).splitlines()
    assert line.startswith(f"error: cannot record a run at sqlite:///{tmp_path}/mlflow.db: ")
    assert "file is not a database" in line
    assert not (tmp_path / "models").exists()


def test_a_store_that_cannot_be_written_gives_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "models", "sqlite:////sys/tracking/mlflow.db")
    (line,) = str(ended.value).splitlines()
    assert line.startswith("error: cannot record a run at sqlite:////sys/tracking/mlflow.db: ")
    assert "make its directory writable" in line


def test_a_server_records_the_run_and_no_model_is_lost_when_it_dies(
    models: Path, workplace: Path, embedded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses one server for several checks, because it takes seconds to start."""
    with mlflow_server(workplace, embedded) as server:
        # DNS rebinding: a foreign name that resolves to this machine must not reach the page.
        statuses = {
            host: httpx.get(f"{server.url}/", headers={"Host": host}).status_code
            for host in ("ui:5000", "localhost:5000", "127.0.0.1:5000", "ui.example.com:5000")
        }
        assert list(statuses.values()) == [200, 200, 200, 403]
        # A Kubernetes probe sends the address of the pod as the host.
        probe = httpx.get(f"{server.url}/health", headers={"Host": "10.1.2.3:5000"})
        assert probe.status_code == 200

        train(tmp_path / "remote", server.url, "--seed", "2")
        run = newest_run(server.url)
        assert (run.info.status, run.info.run_name) == ("FINISHED", "seed 2")
        model = (tmp_path / "remote/model.onnx").read_bytes()
        assert artifact_of(server.url, run, "model.onnx", tmp_path) == model

        # When the server dies, one training is still running and one has just written its model.
        trains = partial(train_model.train, 6)
        training_began, killed = threading.Event(), threading.Event()

        def train_until_the_server_is_dead() -> tuple[bytes, dict[str, Any]]:
            training_began.set()
            assert killed.wait(60)
            return trains()

        def write_and_kill(directory: Path, *arguments: Any) -> dict[str, Any]:
            written = write_artifact(directory, *arguments)
            if directory == tmp_path / "written":
                server.kill()
                killed.set()
            return written

        monkeypatch.setattr(recorded, "write_artifact", write_and_kill)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        record = partial(recorded.train_recorded, "lost", draw=draw_confusion_matrix)
        before = files_of(models)
        with ThreadPoolExecutor() as threads:
            slow = threads.submit(record, "slow", models, train_until_the_server_is_dead)
            assert training_began.wait(60)
            with pytest.raises(SystemExit) as quick:
                record("quick", tmp_path / "written", trains)
            with pytest.raises(SystemExit) as late:
                slow.result()
    lost = f"error: cannot finish recording the run at {server.url}: "
    for ended in (quick, late):
        assert str(ended.value).startswith(lost)
    assert str(quick.value).endswith(f"; the model was written to {tmp_path / 'written'}")
    assert str(late.value).endswith(f"; the model was not written to {models}")
    assert files_of(models) == before
    # The run holds what was recorded, and its status is still RUNNING.
    run = newest_run(embedded, "lost")
    assert (run.info.status, run.info.run_name) == ("RUNNING", "quick")
    sha256 = json.loads((tmp_path / "written/metadata.json").read_bytes())["sha256"]
    assert run.data.tags["model.sha256"] == sha256


@needs_browser
@pytest.mark.slow
def test_the_address_that_make_ui_opens_shows_the_runs(
    models: Path, workplace: Path, embedded: str
) -> None:
    assert models.is_dir()
    with mlflow_server(workplace, embedded) as server, run_browser() as browser:
        page = browser.new_page()
        page.goto(address_of_runs(PATTERN).replace("http://localhost:5000", server.url))
        expect(page.get_by_role("heading", name="Runs")).to_be_visible(
            timeout=PATIENCE_MILLISECONDS
        )
        # The store also holds the runs of other tests, some of the same name.
        run = page.get_by_role("link", name="seed 0").first
        expect(run).to_be_visible(timeout=PATIENCE_MILLISECONDS)
        # The control: the page that MLflow opens by itself.
        page.goto("about:blank")
        page.goto(server.url)
        expect(page.get_by_text("Recent Experiments")).to_be_visible(timeout=PATIENCE_MILLISECONDS)
        expect(page.get_by_text("seed 0")).to_have_count(0)


def address_of_runs(pattern: Path) -> str:
    command = ["make", "--dry-run", "ui", "RUN=docker"]
    shown = subprocess.run(command, cwd=pattern, check=True, capture_output=True, text=True).stdout
    found = re.search(r"the training runs are at ([^\s\"]+)", shown)
    assert found
    return found[1]


def test_every_readme_names_the_address_that_make_ui_opens() -> None:
    readmes = [
        pattern / "README.md" for pattern in patterns() if "ui" in load_compose(pattern).services
    ]
    assert len(readmes) >= 2
    for readme in readmes:
        assert f"<{address_of_runs(readme.parent)}>" in readme.read_text("utf-8"), readme


def test_without_the_server_nothing_is_trained_and_the_last_model_stays(models: Path) -> None:
    before = files_of(models)
    with pytest.raises(SystemExit, match="unset MLFLOW_TRACKING_URI"):
        train(models, f"http://127.0.0.1:{free_port()}", "--seed", "4")
    assert files_of(models) == before


def test_a_first_run_waits_while_another_one_creates_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, waits = tmp_path / "mlflow.db", threading.Event()

    class Lock(FileLock):
        def acquire(self, *arguments: Any, **options: Any) -> Any:
            waits.set()
            return super().acquire(*arguments, **options)

    monkeypatch.setattr(tracking, "FileLock", Lock)
    monkeypatch.setattr(mlflow, "get_experiment_by_name", lambda _: store.touch())
    monkeypatch.setattr(mlflow, "create_experiment", lambda *_: "1")
    with ThreadPoolExecutor() as threads:
        with FileLock(f"{store}.lock"):
            second = threads.submit(tracking.experiment_id, f"sqlite:///{store}", "iris")
            assert waits.wait(60)
            assert not store.exists()
        assert second.result() == "1"


@pytest.mark.slow
def test_two_first_runs_at_once_are_both_recorded(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/tracking/mlflow.db"
    trainings = []
    for name in ("one", "two"):
        # MLflow's own lock is in the temporary directory, and each pod has its own.
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


@pytest.mark.parametrize("seed", ["-1", "4294967296", "one", "1.5", ""])
def test_an_invalid_seed_is_rejected_with_the_reason(
    seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path / "models", f"sqlite:///{tmp_path}/mlflow.db", f"--seed={seed}")
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


def register(url: str, models: Path, *options: str) -> None:
    """Runs `python -m train.register` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["register", f"--url={url}", f"--models={models}", *options])
        registering.main()


def version_of(models: Path) -> str:
    described = (models / "metadata.json").read_bytes()
    return f"{json.loads(described)['version']}.{hashlib.sha256(described).hexdigest()[:12]}"


def relabelled(models: Path, target: Path, labels: list[str]) -> Path:
    """Copies a model and gives it other labels."""
    shutil.copytree(models, target, ignore=shutil.ignore_patterns("1.*"))
    metadata = json.loads((models / "metadata.json").read_bytes())
    (target / "metadata.json").write_text(json.dumps(metadata | {"labels": labels}))
    return target


def experiment_of(server: Server, version: str) -> dict[str, Any]:
    path = f"/v0.1/api/experiments/model-version-id/{version}"
    (experiment,) = httpx.get(f"{server.url}{path}").json()["rows"]
    found: dict[str, Any] = experiment
    return found


def address_of(server: Server, version: str) -> str:
    return str(experiment_of(server, version)["artifact_file_paths"]["onnx"])


def champion_of(server: Server) -> httpx.Response:
    return httpx.get(f"{server.url}/v0.1/api/models/champion/iris_svc")


def test_a_registered_and_promoted_model_is_the_champion(
    registry: Server, models: Path, workplace: Path, embedded: str
) -> None:
    for _ in range(2):
        register(registry.url, models)
    experiments = httpx.get(f"{registry.url}/v0.1/api/experiments/all").json()
    assert experiments["total"] == 1
    assert champion_of(registry).status_code == 404

    metadata = json.loads((models / "metadata.json").read_bytes())
    register(registry.url, models, "--promote")
    champion = champion_of(registry).json()
    assert champion["evaluations"] == metadata["metrics"]
    path = Path(httpx.URL(champion["artifact_file_paths"]["onnx"]).path)
    assert path == models / champion["model_version_id"] / "metadata.json"
    # The digest covers the labels, and that of the model.
    assert champion["artifact_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert files_of(path.parent) == files_of(models)

    train(workplace / "challenger", embedded, "--seed", "5")
    register(registry.url, workplace / "challenger", "--promote")
    assert champion_of(registry).json()["model_version_id"] == version_of(workplace / "challenger")


def test_the_same_model_with_other_labels_is_another_version(
    registry: Server, models: Path, tmp_path: Path
) -> None:
    both = models, relabelled(models, tmp_path / "models", ["a", "b", "c"])
    for directory in both:
        register(registry.url, directory)
    digests = {experiment_of(registry, version_of(each))["artifact_sha256"] for each in both}
    assert len(digests) == 2


def test_registering_the_same_model_from_another_clone_updates_its_address(
    registry: Server, models: Path, tmp_path: Path
) -> None:
    register(registry.url, models)
    shutil.copytree(models, tmp_path / "clone", ignore=shutil.ignore_patterns("1.*"))
    register(registry.url, tmp_path / "clone")
    version = version_of(models)
    where = address_of(registry, version)
    assert where == (tmp_path / "clone" / version / "metadata.json").as_uri()


def test_the_registry_stores_the_given_address(registry: Server, models: Path) -> None:
    uri = f"s3://models/{version_of(models)}/metadata.json"
    register(registry.url, models, "--artifact-uri", uri)
    assert address_of(registry, version_of(models)) == uri


def test_a_version_that_is_registered_with_another_digest_keeps_its_address(
    registry: Server, models: Path, tmp_path: Path
) -> None:
    model = relabelled(models, tmp_path / "models", ["x", "y", "z"])
    with httpx.Client(base_url=f"{registry.url}/v0.1/api/") as client:
        content = {"project_name": "other"}
        project_id = registering.post(client, "projects", content)["project_id"]
        content = {"project_id": project_id, "model_name": "iris_svc"}
        model_id = registering.post(client, "models", content)["model_id"]
        content = {"model_id": model_id, "model_version_id": version_of(model)}
        registering.post(client, "experiments", content | {"artifact_sha256": "0" * 64})
    with pytest.raises(SystemExit, match="a different SHA-256"):
        register(registry.url, model, "--project=other")
    assert experiment_of(registry, version_of(model))["artifact_file_paths"] == {}


@pytest.mark.parametrize("uri", ["", "s3://models", "s3://models/model.onnx", "metadata.json/"])
def test_an_address_must_be_that_of_the_metadata(
    uri: str, registry: Server, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        register(registry.url, models, f"--artifact-uri={uri}")
    assert "--artifact-uri must end in /metadata.json" in capsys.readouterr().err


def test_a_model_that_does_not_match_its_metadata_is_not_registered(
    registry: Server, models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "models", ignore=shutil.ignore_patterns("1.*"))
    damaged = tmp_path / "models/model.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(SystemExit, match="its SHA-256 is"):
        register(registry.url, tmp_path / "models")
    assert files_of(tmp_path / "models").keys() == {"model.onnx", "metadata.json"}
    assert not list((tmp_path / "models").glob("1.*"))


def test_a_failed_registration_gives_the_reason(
    registry: Server, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"^error: no model_db at"):
        register(f"http://127.0.0.1:{free_port()}", models)
    with pytest.raises(SystemExit, match="run make train"):
        register(registry.url, tmp_path)
    for content in ("{}", "[]", "3", "no JSON"):
        (tmp_path / "model.onnx").touch()
        (tmp_path / "metadata.json").write_text(content)
        with pytest.raises(SystemExit, match=r"^error: no trained model in"):
            register(registry.url, tmp_path)
    with pytest.raises(SystemExit, match=r"^error: no model_db at http://x:80a, .*$"):
        register("http://x:80a", models)
    with pytest.raises(SystemExit, match=r"^error: no model_db at .* returned 404: "):
        register(f"{registry.url}/elsewhere", models)


@pytest.mark.parametrize(
    ("app", "title"),
    [
        ("chapter4_serving_patterns.web_single_pattern.app.main:app", "web_single_pattern"),
        # It answers every request with 200.
        ("tests.careless:app", "FastAPI"),
    ],
)
def test_another_service_is_named_instead_of_registering_there(
    app: str, title: str, models: Path
) -> None:
    with run_uvicorn(app, cwd=ROOT, env={"MODEL_DIRECTORY": str(models)}) as server:
        message = f"^error: no model_db at {server.url}, .*: that is {title}$"
        with pytest.raises(SystemExit, match=message):
            register(server.url, models)


@pytest.mark.docker
@pytest.mark.timeout(1800)
def test_a_container_trains_the_same_bytes_as_a_process(models: Path) -> None:
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
    measure = tmp_path / PATTERN.name / "measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(measure)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path / PATTERN.name)
    assert results.counts["distinct_models"] == 1
    assert results.counts["rows_equal"] == 150
    assert results.counts["dependents"] >= 1
    assert results.counts["dependents_with_another_model"] == 0
    assert results.control["distinct_models"] == 5
    assert results.control["rows_equal"] < 150
    assert results.control["dependents_with_another_model"] == results.counts["dependents"]
