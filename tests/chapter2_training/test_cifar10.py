"""cifar10: a step runs only when its inputs have changed; what is served is what was trained."""

import asyncio
import csv
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import onnxruntime
import psutil
import pytest
import torch
from filelock import FileLock
from mlflow.entities import Run
from rich.console import Console
from scipy.stats import binom  # type: ignore[import-untyped]

from chapter2_training.cifar10.app import main as api
from chapter2_training.cifar10.train import step as train_step
from chapter2_training.cifar10.train.cifar import RECORD, DataError, fetch, read_archive, records
from chapter2_training.cifar10.train.gate import probability_of, refusal
from chapter2_training.cifar10.train.learning import batches, epochs, make_deterministic, predict
from chapter2_training.cifar10.train.nets import Standardise, make_net
from chapter2_training.cifar10.train.onnx_graph import export
from chapter2_training.cifar10.train.parameters import parse
from chapter2_training.cifar10.train.shapes import SHAPES, draw, write_archive
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError, free_port, serve

# MLflow's store uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PATTERN = Path(__file__).resolve().parents[2] / "chapter2_training/cifar10"
# Small enough for a test, and enough to be better than chance by far.
SMALL = ("--images=300", "--epochs=4")
# Another process may be writing it.
COMPILED = shutil.ignore_patterns("__pycache__")
STEPS = ["preprocess", "fit", "build", "evaluate"]


def command(program: str, state: Path, *arguments: str) -> list[str]:
    options = [f"--output={state / 'models'}", *SMALL, *arguments]
    return [sys.executable, "-m", program, *options]


def environment(state: Path, **more: str) -> dict[str, str]:
    tracking = f"sqlite:///{state / 'tracking/mlflow.db'}"
    return {**os.environ, "MLFLOW_TRACKING_URI": tracking, **more}


def run(
    program: str, state: Path, *arguments: str, pattern: Path = PATTERN, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs the pipeline or a step in a process of its own; what it makes goes below `state`."""
    return subprocess.run(
        command(program, state, *arguments),
        cwd=pattern,
        env=environment(state, **more),
        capture_output=True,
        text=True,
        check=False,
    )


def steps_run(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Returns the steps that were run, and makes sure that the others were said not to be."""
    found = [step for step in STEPS if f"{step}: done in" in done.stdout]
    said = [step for step in STEPS if f"{step}: not run again" in done.stdout]
    assert not set(found) & set(said), done.stdout
    return found


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without any run: MLflow takes seconds to make its tables, and less to find them."""
    directory = tmp_path_factory.mktemp("tables")
    mlflow.MlflowClient(f"sqlite:///{directory / 'mlflow.db'}").search_experiments()
    return directory


@pytest.fixture
def fresh(tables: Path, tmp_path: Path) -> Path:
    """A directory in which no step has been run."""
    shutil.copytree(tables, tmp_path / "fresh/tracking")
    return tmp_path / "fresh"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of the pipeline leaves: data/, models/ and tracking/. Tests copy it."""
    state = tmp_path_factory.mktemp("trained")
    done = run("train", state)
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps_run(done) == STEPS
    return state


@pytest.fixture
def state(trained: Path, tmp_path: Path) -> Path:
    """A copy, in which a test may change and run what it likes."""
    shutil.copytree(trained, tmp_path / "state")
    return tmp_path / "state"


def only(state: Path, step: str) -> Path:
    """Returns the one directory that a step has made."""
    (found,) = (path for path in (state / "data").glob(f"{step}-*") if path.is_dir())
    return found


def model_of(state: Path) -> bytes:
    return (state / "models/model.onnx").read_bytes()


def runs_of(uri: str) -> list[Run]:
    """Returns all runs, the newest first."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("cifar10")
    assert experiment
    return list(client.search_runs([experiment.experiment_id]))


def store_of(state: Path) -> str:
    return f"sqlite:///{state / 'tracking/mlflow.db'}"


def newest(state: Path, name: str) -> Run:
    """Returns the newest run of this name."""
    return next(each for each in runs_of(store_of(state)) if each.info.run_name == name)


# ---- The pipeline --------------------------------------------------------------------------------


def test_four_steps_are_recorded_under_one_parent_with_all_there_is_to_know(trained: Path) -> None:
    uri = store_of(trained)
    by_name = {found.info.run_name: found for found in runs_of(uri)}
    parent = by_name.pop("simple pipeline")
    assert set(by_name) == set(STEPS)
    assert {found.data.tags["mlflow.parentRunId"] for found in by_name.values()} == {
        parent.info.run_id
    }
    assert {found.info.status for found in [parent, *by_name.values()]} == {"FINISHED"}
    assert parent.data.params["net"] == "simple"
    assert parent.data.params["seed"] == "0"
    assert parent.data.tags["published"] == "yes"
    digest = hashlib.sha256(model_of(trained)).hexdigest()
    assert by_name["build"].data.tags["model.sha256"] == digest
    training_data = (only(trained, "preprocess") / "train.bin").read_bytes()
    assert (
        by_name["build"].data.params["training_data_sha256"]
        == hashlib.sha256(training_data).hexdigest()
    )
    client = mlflow.MlflowClient(uri)
    artifacts = {
        step: {file.path for file in client.list_artifacts(found.info.run_id)}
        for step, found in by_name.items()
    }
    assert {"model.onnx", "metadata.json", "curves.png"} <= artifacts["build"]
    assert {"scores.json", "per_image.csv"} <= artifacts["evaluate"]
    # The book's version records the whole data set again with each run.
    assert artifacts["preprocess"] == set()
    history = client.get_metric_history(by_name["fit"].info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]
    assert (only(trained, "fit") / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_run_again_when_nothing_has_changed(state: Path) -> None:
    before = model_of(state)
    done = run("train", state)
    assert done.returncode == 0
    assert steps_run(done) == []
    assert model_of(state) == before
    run_of_all = newest(state, "simple pipeline")
    assert run_of_all.data.metrics["steps_run"] == 0
    assert {run_of_all.data.tags[f"step.{step}"] for step in STEPS} == {"not run again"}


def test_a_parameter_runs_the_step_that_depends_on_it_and_those_after(state: Path) -> None:
    assert steps_run(run("train", state, "--epochs=1")) == STEPS[1:]
    assert steps_run(run("train", state, "--epochs=1", "--images=20")) == STEPS
    # What was made before is still there, and the gate is no step.
    assert steps_run(run("train", state, "--margin=0.05")) == []


@pytest.mark.parametrize(
    ("file", "steps"),
    [
        # The model comes out the same: what is after it stays.
        ("train/nets.py", ["fit", "build"]),
        ("app/main.py", ["evaluate"]),
    ],
)
def test_changed_code_runs_the_steps_that_use_it(
    state: Path, tmp_path: Path, file: str, steps: list[str]
) -> None:
    for package in ("app", "train"):
        shutil.copytree(PATTERN / package, tmp_path / package, ignore=COMPILED)
    with (tmp_path / file).open("a") as source:
        source.write("\n# Another byte.\n")
    done = run("train", state, pattern=tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps_run(done) == steps


def test_what_was_damaged_is_made_again(state: Path) -> None:
    os.truncate(only(state, "fit") / "weights.pt", 1_000)
    before = model_of(state)
    assert steps_run(run("train", state)) == ["fit"]
    assert model_of(state) == before


def test_a_killed_fit_goes_on_from_its_last_epoch_and_ends_with_the_same_model(
    state: Path,
) -> None:
    before = model_of(state)
    shutil.rmtree(only(state, "fit"))
    shutil.rmtree(state / "models")
    process = subprocess.Popen(
        command("train", state),
        cwd=PATTERN,
        env=environment(state),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    for line in process.stdout:
        if "epoch 1 of 4" in line:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (state / "models").exists()
    assert only(state, "fit").suffix == ".partial"
    done = run("train", state)
    # What it makes is the same, so what comes after it stays.
    assert steps_run(done) == ["fit"]
    assert "goes on from" in done.stdout
    assert model_of(state) == before
    client = mlflow.MlflowClient(store_of(state))
    history = client.get_metric_history(newest(state, "fit").info.run_id, "test_loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4]


def test_a_fit_that_fails_in_its_last_act_runs_no_epoch_again(state: Path) -> None:
    fit = only(state, "fit")
    weights = (fit / "weights.pt").read_bytes()
    shutil.rmtree(fit)
    # A file in the place of the directory: what is made cannot get its name.
    fit.write_text("")
    assert run("train.fit", state).returncode == 1
    fit.unlink()
    checkpoint = only(state, "fit") / "checkpoint.pt"
    kept = torch.load(checkpoint, weights_only=True)
    assert len(kept["history"]) == 4
    # Only who does not run the last epoch again says this of it.
    kept["history"][-1]["test_loss"] = 99.0
    torch.save(kept, checkpoint)
    done = run("train.fit", state)
    assert done.returncode == 0, done.stderr
    assert json.loads((fit / "history.json").read_text())[-1]["test_loss"] == 99.0
    assert (fit / "weights.pt").read_bytes() == weights
    assert not (fit / "checkpoint.pt").exists()


def test_sigterm_in_fit_ends_the_step_too_and_both_runs_have_failed(state: Path) -> None:
    process = subprocess.Popen(
        command("train", state, "--epochs=1000"),
        cwd=PATTERN,
        env=environment(state),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    for line in process.stdout:
        if "epoch 1 of" in line:
            process.terminate()
            break
    # The step holds the pipe as well, so this ends only when both have ended.
    process.stdout.read()
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGTERM
    for name in ("simple pipeline", "fit"):
        assert newest(state, name).info.status == "FAILED"


@pytest.mark.parametrize("by", ["SIGTERM to the pipeline", "Ctrl-C in the terminal"])
def test_a_signal_in_evaluate_ends_the_server_too_and_both_runs_have_failed(
    state: Path, tmp_path: Path, by: str
) -> None:
    for package in ("app", "train"):
        shutil.copytree(PATTERN / package, tmp_path / package, ignore=COMPILED)
    with (tmp_path / "app/main.py").open("a") as source:
        source.write("\nimport time\n\n_predict = Model.predict\n")
        source.write("Model.predict = lambda *a: time.sleep(0.2) or _predict(*a)\n")
    process = subprocess.Popen(
        command("train", state),
        cwd=tmp_path,
        env=environment(state),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    # It takes a minute to score 300 images, so this finds it in the middle.
    while not any("running on" in log.read_text() for log in state.glob("data/*.partial/*.log")):
        assert process.poll() is None
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("app.main:app" in each.cmdline() for each in started)
    number = signal.SIGTERM if by.startswith("SIGTERM") else signal.SIGINT
    if number == signal.SIGTERM:
        process.terminate()
    else:
        os.killpg(process.pid, number)
    assert process.wait(60) == 128 + number
    assert not [each for each in started if each.is_running()]
    for name in ("simple pipeline", "evaluate"):
        assert newest(state, name).info.status == "FAILED"


def test_steps_run_alone_in_fresh_processes_make_the_same_bytes(trained: Path, fresh: Path) -> None:
    for step in STEPS[:3]:
        done = run(f"train.{step}", fresh)
        assert done.returncode == 0, done.stderr
        result, expected = (
            json.loads((only(state, step) / "result.json").read_text())
            for state in (fresh, trained)
        )
        assert result["sha256"] == expected["sha256"]
    assert "not run again" in run("train.fit", fresh).stdout


def test_another_seed_makes_other_data_and_another_network(state: Path) -> None:
    before = {step: only(state, step) for step in STEPS[:2]}
    for step, file in (("preprocess", "train.bin"), ("fit", "weights.pt")):
        assert steps_run(run(f"train.{step}", state, "--seed=1")) == [step]
        (made,) = {path for path in state.glob(f"data/{step}-*") if path.is_dir()} - {before[step]}
        assert (made / file).read_bytes() != (before[step] / file).read_bytes()


def test_a_step_says_which_one_comes_before(tmp_path: Path) -> None:
    done = run("train.fit", tmp_path)
    assert done.returncode == 1
    assert "preprocess comes before: run python -m train.preprocess" in done.stderr


def test_a_second_run_at_the_same_time_is_refused(state: Path) -> None:
    with FileLock(state / "data/lock"):
        done = run("train", state)
    assert done.returncode == 1
    assert "another process is at it" in done.stderr


@pytest.mark.parametrize(
    "argument",
    [
        "--net=simple_model",
        "--epochs=-1",
        "--epochs=1e3",
        "--epochs=",
        "--images=0",
        "--images=10001",
        "--batch-size=1",
        "--learning-rate=nan",
        "--learning-rate=0",
        "--learning-rate=inf",
        "--seed=4294967296",
        "--seed=²",
        "--data=cifar100",
        "--margin=1",
        "--device=tpu",
        "--threads=0",
    ],
)
def test_an_argument_that_cannot_be_is_refused_by_its_name(
    argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse("train", None, [argument])
    assert argument.partition("=")[0] in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_an_error_and_not_a_cpu(state: Path) -> None:
    done = run("train.fit", state, "--device=cuda", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "use --device cpu" in done.stderr


def test_without_a_terminal_a_line_says_every_few_seconds_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_step, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(train_step, "console", Console(force_terminal=False))
    said = ""
    with train_step.bar() as progress:
        progress.add_task("fit: simple", total=4, completed=1)
        progress.add_task("preprocess: downloading", total=None, completed=17_000_000)
        while "downloading" not in said:
            said += capsys.readouterr().out
    assert "fit: simple: 25 %\npreprocess: downloading: 17 MB" in said


# ---- The gate ------------------------------------------------------------------------------------


def test_an_untrained_model_is_not_published_and_the_run_has_failed(state: Path) -> None:
    before = {path.name: path.read_bytes() for path in (state / "models").iterdir()}
    done = run("train", state, "--epochs=0")
    assert done.returncode == 1
    assert "not published" in done.stderr
    assert "chance (0.100) and a margin of 0.1" in done.stderr
    assert {path.name: path.read_bytes() for path in (state / "models").iterdir()} == before
    refused = newest(state, "simple pipeline")
    assert (refused.info.status, refused.data.tags["published"]) == ("FAILED", "no")
    # The control: with the gate switched off the same model is published.
    done = run("train", state, "--epochs=0", "--margin=-0.9")
    assert done.returncode == 0
    assert steps_run(done) == []
    assert model_of(state) != before["model.onnx"]


@pytest.mark.parametrize(("images", "margin"), [(300, 0.1), (1_000, 0.1), (10_000, 0.0)])
def test_the_gate_lets_less_than_one_in_a_thousand_pass_that_should_not(
    images: int, margin: float
) -> None:
    def passes(k: int) -> bool:
        scores = {"correct": k, "images": images, "different_from_training": 0}
        return refusal(scores, 10, margin) is None

    lowest = bisect_left(range(images + 1), True, key=passes)
    for k in range(0, images + 1, images // 100):
        assert passes(k) is (k >= lowest)
    assert binom.sf(lowest - 1, images, 0.1 + margin) <= 0.001
    assert binom.sf(lowest - 1, images, 0.5) > 0.999
    for k in (1, images // 10, images // 5, images):
        expected = binom.sf(k - 1, images, 0.1 + margin)
        assert np.isclose(probability_of(k, images, 0.1 + margin), expected, rtol=1e-6)


def test_a_server_that_says_something_else_than_the_trained_net_is_not_published() -> None:
    scores = {"correct": 90, "images": 100, "different_from_training": 2}
    assert "something else" in (refusal(scores, 10, 0.1) or "")
    assert refusal(scores | {"different_from_training": 1}, 10, 0.1) is None


# ---- Data ----------------------------------------------------------------------------------------


@contextmanager
def web(directory: Path) -> Iterator[str]:
    """Serves the files of a directory."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(directory))

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_the_download_is_checked_and_laid_out_as_the_drawn_images_are(
    trained: Path, fresh: Path
) -> None:
    site = fresh / "site"
    site.mkdir()
    write_archive(site / "a.tar.gz", 300, 0)
    given = ["--data=cifar10", f"--archive-md5={md5(site / 'a.tar.gz')}"]
    with web(site) as url:
        done = run("train.preprocess", fresh, *given, f"--archive-url={url}/a.tar.gz")
        assert done.returncode == 0, done.stderr
        for name in ("train.bin", "test.bin", "statistics.json"):
            made, expected = (only(each, "preprocess") / name for each in (fresh, trained))
            assert made.read_bytes() == expected.read_bytes()
        # Fewer images of the same archive need no second download.
        (site / "a.tar.gz").unlink()
        done = run("train.preprocess", fresh, *given, "--images=10")
        assert done.returncode == 0, done.stderr


def test_without_a_network_the_error_says_what_to_do(fresh: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/cifar-10-binary.tar.gz"
    done = run("train.preprocess", fresh, "--data=cifar10", f"--archive-url={url}")
    assert done.returncode == 1
    assert "--data synthetic" in done.stderr
    assert str(fresh / "data/cifar-10-binary.tar.gz") in done.stderr
    assert "Traceback" not in done.stderr


def test_a_download_with_another_digest_or_cut_off_leaves_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "a").write_bytes(b"x" * 1_000)
    target = tmp_path / "data/archive"
    with web(site) as url:
        with pytest.raises(DataError, match="has MD5"):
            fetch(f"{url}/a", "0" * 32, target, lambda *_: None)
        with pytest.raises(DataError, match="404"):
            fetch(f"{url}/nothing", "0" * 32, target, lambda *_: None)
    for address in ("ftp://example.org/a", "file:///etc/passwd", "http://", "nothing"):
        with pytest.raises(DataError, match="cannot be downloaded"):
            fetch(address, "0" * 32, target, lambda *_: None)
    assert not target.exists()
    target.write_bytes(b"placed by hand, and another")
    with pytest.raises(DataError, match="delete it"):
        fetch("http://example.org", "0" * 32, target, lambda *_: None)


def test_a_file_of_the_archive_leads_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("../outside", "/tmp/outside", "cifar-10-batches-bin/../../outside"):  # noqa: S108
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    with pytest.raises(DataError, match=r"lacks .*data_batch_1\.bin"):
        list(read_archive(path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x1f\x8b" + b"x" * 100])
def test_what_is_no_archive_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a whole|lacks"):
        list(read_archive(path))


def test_an_archive_that_is_cut_off_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_archive(path, 10, 0)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="not a whole"):
        list(read_archive(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"\0" * (RECORD - 1), "no multiple"),
        (b"\x0a" + b"\0" * (RECORD - 1), "label 10"),
    ],
)
def test_records_that_cannot_be_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        records(content, "data_batch_1.bin")


def test_the_drawn_classes_are_as_many_of_each_and_the_same_for_a_seed(tmp_path: Path) -> None:
    images, labels = draw(100, np.random.default_rng(1))
    assert images.shape == (100, 3, 32, 32)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [10] * len(SHAPES)
    for name in ("a", "b"):
        write_archive(tmp_path / name, 20, 3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    files = dict(read_archive(tmp_path / "a"))
    assert {len(content) for name, content in files.items() if name.endswith(".bin")} == {
        20 * RECORD
    }


# ---- Networks ------------------------------------------------------------------------------------

MEAN, DEVIATION = [120.0, 110.0, 100.0], [60.0, 55.0, 50.0]
# Of ImageNet, in units of 0 to 255: the book's version scores with these what it trained otherwise.
IMAGENET = [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]


def some_net(name: str) -> torch.nn.Sequential:
    """Returns a network whose weights are by chance, and whose statistics are of some images."""
    torch.manual_seed(0)
    net = make_net(name, MEAN, DEVIATION)
    rows = draw(64, np.random.default_rng(1))[0].reshape(64, -1)
    with torch.no_grad():
        for tensor in (value for key, value in net.state_dict().items() if key.endswith("bias")):
            tensor.copy_(torch.rand_like(tensor) - 0.5)
        for layer in net:
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        net.train()(torch.from_numpy(rows).float())
    return net.eval()


@pytest.mark.parametrize("name", ["simple", "vgg11", "vgg16"])
def test_the_onnx_graph_computes_what_the_network_does(name: str) -> None:
    net = some_net(name)
    rows = draw(16, np.random.default_rng(0))[0].reshape(16, -1)
    expected = torch.softmax(predict(net, rows), 1).numpy()
    session = onnxruntime.InferenceSession(export(net))
    (answer,) = session.run(["probabilities"], {"X": rows.astype(np.float32)})
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4)
    # The networks are not so random that anything would fit.
    assert np.ptp(expected, axis=0).max() > 1e-3
    net[0] = Standardise(*IMAGENET)
    session = onnxruntime.InferenceSession(export(net))
    (otherwise,) = session.run(["probabilities"], {"X": rows.astype(np.float32)})
    assert not np.allclose(otherwise, expected, rtol=0, atol=1e-4)


def test_a_layer_without_a_node_is_an_error() -> None:
    with pytest.raises(TypeError, match="GELU"):
        export(torch.nn.Sequential(torch.nn.GELU()))


def learn(tmp_path: Path, count: int) -> tuple[torch.nn.Sequential, list[dict[str, float]]]:
    make_deterministic(1)
    torch.manual_seed(0)
    net = make_net("simple", MEAN, DEVIATION)
    images, labels = draw(640, np.random.default_rng(0))
    part = images.reshape(640, -1), torch.from_numpy(labels.astype(np.int64))
    settings = {"epochs": count, "batch_size": 32, "learning_rate": 0.001, "seed": 0}
    rows = epochs(net, part, part, settings, tmp_path / "checkpoint.pt", lambda: None)
    return net, list(rows)


def test_training_is_in_training_mode_and_predicting_is_not(tmp_path: Path) -> None:
    net, history = learn(tmp_path, 6)
    normalisations = [layer for layer in net if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in normalisations:
        # 20 batches an epoch have moved the statistics, and scoring has not.
        assert int(layer.get_buffer("num_batches_tracked")) == 120
        assert not torch.equal(
            layer.get_buffer("running_var"), torch.ones_like(layer.get_buffer("running_var"))
        )
    assert not net.training
    rows = draw(10, np.random.default_rng(1))[0].reshape(10, -1)
    net.train()
    # Drop-out would make these differ.
    assert torch.equal(predict(net, rows), predict(net, rows))
    # ln 10, at which the book's version stayed; a loss is the mean of an image.
    assert history[0]["test_loss"] == pytest.approx(2.3, abs=0.6)
    assert history[-1]["test_loss"] < 2.0
    assert history[-1]["test_accuracy"] > 0.3


def test_a_checkpoint_is_yielded_again_without_being_learnt_again(tmp_path: Path) -> None:
    net, history = learn(tmp_path, 2)
    again, repeated = learn(tmp_path, 2)
    assert repeated == history
    for one, other in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 66, 128, 129, 1_000])
def test_batches_hold_every_row_once_and_none_holds_one_row_alone(rows: int) -> None:
    parts = batches(rows, 64)
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert min(len(range(rows)[part]) for part in parts) >= min(rows, 2)


# ---- Evaluation ----------------------------------------------------------------------------------


def test_the_result_of_every_image_is_kept(trained: Path) -> None:
    evaluated = only(trained, "evaluate")
    scores = json.loads((evaluated / "scores.json").read_text())
    with (evaluated / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == list(range(300))
    assert sum(row["label"] == row["predicted"] for row in rows) == scores["correct"]
    assert scores["accuracy"] == scores["correct"] / 300 > 0.3
    assert scores["different_from_training"] == 0
    assert set(scores["per_class"]) == set(SHAPES)
    assert sum(each["images"] for each in scores["per_class"].values()) == 300
    assert scores["served_by"] == "process"
    assert 0 < scores["p50_ms"] <= scores["p99_ms"]
    assert min(float(row["milliseconds"]) for row in rows) > 0


def test_a_failed_evaluation_alone_is_run_again(state: Path) -> None:
    with start(state / "models") as other:
        done = run("train", state, "--epochs=1", "--margin=-0.9", f"--server={other.url}")
        assert done.returncode == 1
        assert "serves the model" in done.stderr
        assert steps_run(done) == ["fit", "build"]
    before = model_of(state)
    done = run("train", state, "--epochs=1", "--margin=-0.9")
    assert done.returncode == 0, done.stderr
    assert steps_run(done) == ["evaluate"]
    assert model_of(state) != before


def test_a_server_that_does_not_start_is_an_error_with_its_log(state: Path, tmp_path: Path) -> None:
    for package in ("app", "train"):
        shutil.copytree(PATTERN / package, tmp_path / package, ignore=COMPILED)
    # The log is longer than what is shown of it, which begins inside of a character.
    why = "ä" * 2_000 + " it does not start"
    (tmp_path / "app/schema.py").write_text(f"raise SystemExit({why!a})\n")
    done = run("train", state, pattern=tmp_path)
    assert done.returncode == 1
    assert "the server ended" in done.stderr
    assert "it does not start" in done.stderr
    # The image that a cured server scores is the one that was built before.
    assert steps_run(run("train", state)) == []


# ---- Tracking ------------------------------------------------------------------------------------


def test_runs_are_recorded_by_a_server_if_one_is_named(state: Path, tmp_path: Path) -> None:
    port = free_port()
    kept = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    options = ["--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1"]
    with serve(
        [sys.executable, "-m", "mlflow", "server", *kept, *options, "--port", str(port)],
        cwd=tmp_path,
        env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        ready_url=f"http://127.0.0.1:{port}/health",
        port=port,
        deadline_seconds=120,
    ) as server:
        shutil.rmtree(only(state, "evaluate"))
        done = run("train", state, MLFLOW_TRACKING_URI=server.url)
        assert done.returncode == 0, done.stderr
        recorded = {found.info.run_name: found for found in runs_of(server.url)}
        assert set(recorded) == {"simple pipeline", "evaluate"}
        artifacts = mlflow.MlflowClient(server.url).list_artifacts(recorded["evaluate"].info.run_id)
        assert "scores.json" in {file.path for file in artifacts}


def test_a_tracking_server_that_is_not_there_is_an_error_before_any_step(tmp_path: Path) -> None:
    done = run("train", tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "no run can be recorded" in done.stderr
    assert steps_run(done) == []


# ---- Serving -------------------------------------------------------------------------------------


def start(models: Path, **settings: str) -> AbstractContextManager[Server]:
    port = free_port()
    options = ["--loop", "uvloop", "--http", "httptools", "--timeout-graceful-shutdown", "5"]
    return serve(
        [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port), *options],
        cwd=PATTERN,
        env={"MODEL_DIRECTORY": str(models), **settings},
        ready_url=f"http://127.0.0.1:{port}/ready",
        port=port,
    )


@pytest.fixture(scope="module")
def client(trained: Path) -> Iterator[httpx.Client]:
    with (
        start(trained / "models") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client


def test_the_contract_of_a_prediction_server_is_kept(client: httpx.Client, trained: Path) -> None:
    labels = list(SHAPES)
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    metadata = client.get("/metadata").json()
    assert metadata == json.loads((trained / "models/metadata.json").read_text())
    assert client.get("/label").json() == {str(i): label for i, label in enumerate(labels)}
    predicted = client.post("/predict", json={"data": metadata["sample"]}).json()
    assert client.get("/predict/test").json() == predicted
    assert np.isclose(sum(predicted["prediction"][0]), 1, atol=1e-5)
    (label,) = client.get("/predict/test/label").json()["prediction"]
    assert label == labels[int(np.argmax(predicted["prediction"][0]))]


def test_a_hundred_images_in_one_request_are_answered_as_one_by_one(
    client: httpx.Client, trained: Path
) -> None:
    rows = np.fromfile(only(trained, "preprocess") / "test.bin", np.uint8).reshape(-1, RECORD)
    images = rows[:100, 1:].tolist()
    labels = client.post("/predict/label", json={"data": images}).json()["prediction"]
    with (only(trained, "evaluate") / "per_image.csv").open() as file:
        assert labels == [row["predicted"] for row in csv.DictReader(file)][:100]
    # Numbers with all their digits fit into the bound of the body, too.
    widest = [[254.123456789 for _ in range(RECORD - 1)]] * 80
    assert client.post("/predict/label", json={"data": widest}).status_code == 200


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([0] * 3_071, "at least 3072 items"),
        ([0] * 3_073, "at most 3072 items"),
        ([-1] + [0] * 3_071, "greater than or equal to 0"),
        ([256] + [0] * 3_071, "less than or equal to 255"),
        (["0"] + [0] * 3_071, "valid number"),
        ([True] + [0] * 3_071, "valid number"),
        ([[0] * 3_072], "valid number"),
        ("an image", "valid array"),
    ],
)
def test_an_invalid_image_is_a_422_that_says_why(
    client: httpx.Client, row: object, reason: str
) -> None:
    answer = client.post("/predict", json={"data": [row]})
    assert answer.status_code == 422
    assert reason in answer.text
    assert len(answer.content) < 5_000


def test_other_bodies_are_refused_too(client: httpx.Client) -> None:
    row = f"[{','.join(['NaN'] * 3_072)}]"
    assert client.post("/predict", content=f'{{"data": [{row}]}}').status_code == 422
    assert client.post("/predict", json={"data": []}).status_code == 422
    assert client.post("/predict", json={"data": [[0] * 3_072] * 101}).status_code == 422
    assert client.post("/predict", content=b"\x89PNG").status_code == 422
    assert client.post("/predict", content=b" " * 5_000_000).status_code == 413


def test_health_is_answered_while_a_large_network_predicts(tmp_path: Path, trained: Path) -> None:
    model = export(some_net("vgg16"))
    metadata = json.loads((trained / "models/metadata.json").read_text())
    (tmp_path / "model.onnx").write_bytes(model)
    described = metadata | {"sha256": hashlib.sha256(model).hexdigest()}
    (tmp_path / "metadata.json").write_text(json.dumps(described))
    answered: list[float] = []
    with start(tmp_path) as server:
        body = {"data": metadata["sample"] * 100}
        predicting = threading.Thread(
            target=lambda: answered.append(
                httpx.post(f"{server.url}/predict", json=body, timeout=120).status_code
            )
        )
        predicting.start()
        healthy = 0
        with httpx.Client(base_url=server.url) as client:
            while predicting.is_alive():
                healthy += client.get("/health").status_code == 200
        assert answered == [200]
        # In the event loop, one at most would have been answered meanwhile.
        assert healthy > 20


def test_one_request_at_a_time_is_predicted() -> None:
    at_once: list[int] = []

    class Counting:
        labels = ("one",)
        running = 0

        def predict(self, rows: list[list[float]]) -> np.ndarray:
            self.running += 1
            at_once.append(self.running)
            time.sleep(0.02)
            self.running -= 1
            return np.ones((len(rows), 1))

        def predict_labels(self, rows: list[list[float]]) -> list[str]:
            return ["one"] * len(self.predict(rows))

    async def ask() -> set[int]:
        api.app.state.model = Counting()
        transport = httpx.ASGITransport(api.app)
        body = {"data": [[0] * (RECORD - 1)]}
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            paths = ["/predict", "/predict/label"] * 8
            answers = await asyncio.gather(*(client.post(path, json=body) for path in paths))
        return {answer.status_code for answer in answers}

    assert asyncio.run(ask()) == {200}
    assert at_once == [1] * 16


def test_a_server_without_a_published_model_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no usable model"), start(tmp_path):
        pass


# ---- The claim -----------------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    module = "chapter2_training.cifar10.measure"
    measured = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / PATTERN.name)]
    done = subprocess.run(
        measured, cwd=PATTERN.parents[1], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = load_results(tmp_path / PATTERN.name)
    assert results.counts == {
        "steps_first": 4,
        "steps_unchanged": 0,
        "steps_after_a_parameter_of_fit": 3,
        "steps_after_a_kill_in_fit": 3,
        "published_at_chance": 0,
        "predictions_unlike_training": 0,
    }
    without = dict(results.control)
    assert without.pop("predictions_unlike_training") > 10
    assert without == {
        "steps_unchanged": 4,
        "steps_after_a_parameter_of_fit": 4,
        "steps_after_a_kill_in_fit": 4,
        "published_at_chance": 1,
    }


@pytest.mark.docker
@pytest.mark.timeout(1800)
def test_with_docker_the_model_is_scored_in_an_image_of_its_own_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def docker(*arguments: str) -> str:
        return subprocess.run(
            ["docker", *arguments], check=True, capture_output=True, text=True
        ).stdout

    def left_running() -> list[str]:
        names = docker("ps", "--all", "--format", "{{.Names}}").split()
        return [name for name in names if re.match("cifar10-(pipeline|server)-", name)]

    # Volumes of its own: a reader's download, and what was trained with it, stay.
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "test-cifar10")
    compose = ["compose", "--project-directory", str(PATTERN)]
    docker(*compose, "down", "--volumes")
    trainer = [sys.executable, "train_with_docker.py", *SMALL]
    try:
        first, second = (
            subprocess.run(trainer, cwd=PATTERN, check=True, capture_output=True, text=True)
            for _ in range(2)
        )
        assert steps_run(first) == STEPS
        assert steps_run(second) == []
        name = first.stdout.split("the image ")[1].split()[0]
        described = json.loads(docker("image", "inspect", name))[0]
        assert described["Config"]["Labels"]["model.name"] == "cifar10_simple"
        assert described["Config"]["User"] == "10001:10001"
        found = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('sklearn'))"
        assert docker("run", "--rm", name, "python", "-c", found) == "None None\n"
        assert not left_running()
        # A model that is not published has an image all the same, and nothing runs on.
        refused = subprocess.run(
            [*trainer, "--epochs=0"], cwd=PATTERN, check=False, capture_output=True, text=True
        )
        assert refused.returncode == 1
        # The reason is the last of it, however Docker brings output and errors.
        assert refused.stdout.splitlines()[-1].startswith("error: not published: ")
        assert not left_running()
        # Nor does anything after SIGTERM, and no run is said to be running.
        with subprocess.Popen(
            [*trainer, "--epochs=1000"], cwd=PATTERN, stdout=subprocess.PIPE, text=True
        ) as process:
            for line in process.stdout or ():
                if "epoch 1 of" in line:
                    assert left_running()
                    process.terminate()
                    break
        assert process.returncode == 128 + signal.SIGTERM
        assert not left_running()
        statuses = (
            "import mlflow; c = mlflow.MlflowClient(); e = c.get_experiment_by_name('cifar10'); "
            "print({r.info.status for r in c.search_runs([e.experiment_id], max_results=2)})"
        )
        once = ["run", "--rm", "--no-deps", "-T", "train", "python", "-c"]
        assert docker(*compose, *once, statuses) == "{'FAILED'}\n"
    finally:
        docker(*compose, "down", "--volumes")
