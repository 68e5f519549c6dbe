"""cifar10: a step runs only if its inputs have changed, and the trained model is the one served."""

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
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from scipy.special import bdtrc

from chapter2_training.cifar10.app import main as api
from chapter2_training.cifar10.train import __main__ as train_main
from chapter2_training.cifar10.train import build, cifar, evaluate, fit, preprocess
from chapter2_training.cifar10.train import step as train_step
from chapter2_training.cifar10.train.cifar import RECORD, DataError, fetch, read_archive, records
from chapter2_training.cifar10.train.gate import probability_of, rejection
from chapter2_training.cifar10.train.learning import batches, epochs, make_deterministic, predict
from chapter2_training.cifar10.train.nets import Standardise, make_net, weights_of
from chapter2_training.cifar10.train.onnx_graph import export
from chapter2_training.cifar10.train.parameters import Parameters, parse
from chapter2_training.cifar10.train.shapes import SHAPES, draw, write_archive
from tools.measure.results import load as load_results
from tools.measure.server import serve, wait_until
from tools.run.ports import free_port

# MLflow's store uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

PATTERN = Path(__file__).resolve().parents[2] / "chapter2_training/cifar10"
# Small enough for a test, but far better than chance.
IMAGES, EPOCHS = 100, 6
SMALL = (f"--images={IMAGES}", f"--epochs={EPOCHS}")
# Another process may be writing these.
COMPILED = shutil.ignore_patterns("__pycache__")
STEPS = list(train_step.STEPS)
PROGRAMS: dict[str, tuple[train_step.Work, bool]] = {
    "preprocess": (preprocess.preprocess, False),
    "fit": (fit.fit, True),
    "build": (build.build, False),
    "evaluate": (evaluate.evaluate, False),
}


@pytest.fixture(autouse=True)
def _signals_of_the_tests() -> Iterator[None]:
    """Restores the signal handlers that a step or the pipeline replaces."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def options(state: Path, *arguments: str) -> list[str]:
    """Returns a command line that keeps everything below `state`."""
    return [f"--output={state / 'models'}", *SMALL, *arguments]


def parameters_of(state: Path, *arguments: str) -> Parameters:
    return parse("train", None, options(state, *arguments))


def run_step(name: str, state: Path, *arguments: str) -> None:
    """Runs a step in this process, which has already imported PyTorch."""
    work, resumes = PROGRAMS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *options(state, *arguments)])
        train_step.run(name, None, work, resumes=resumes)


def run_pipeline(state: Path, *arguments: str, uri: str = "") -> None:
    """Runs `python -m train` in this process, and its steps in their own processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri or store_of(state))
        patch.setattr(sys, "argv", ["train", *options(state, *arguments)])
        train_main.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs the pipeline once, and returns the directory of data/, models/ and tracking/."""
    state = tmp_path_factory.mktemp("trained")
    run_pipeline(state)
    return state


@pytest.fixture
def state(trained: Path, tmp_path: Path) -> Path:
    """Returns a copy of `trained` that a test may change."""
    shutil.copytree(trained, tmp_path / "state")
    return tmp_path / "state"


def only(state: Path, step: str) -> Path:
    """Returns the only result directory of a step."""
    (found,) = (path for path in (state / "data").glob(f"{step}-*") if path.is_dir())
    return found


def result_of(directory: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((directory / "result.json").read_bytes())
    return result


def store_of(state: Path) -> str:
    return f"sqlite:///{state / 'tracking/mlflow.db'}"


def runs_of(state: Path) -> dict[str, Run]:
    """Returns the newest run of each name."""
    client = mlflow.MlflowClient(store_of(state))
    experiment = client.get_experiment_by_name("cifar10")
    assert experiment
    found = client.search_runs([experiment.experiment_id])
    return {str(run.info.run_name): run for run in reversed(found)}


# ---- The pipeline --------------------------------------------------------------------------------


def test_four_steps_are_recorded_under_one_parent(trained: Path) -> None:
    runs = runs_of(trained)
    parent = runs.pop("simple pipeline")
    assert set(runs) == set(STEPS)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *runs.values()]} == {"FINISHED"}
    assert (parent.data.params["net"], parent.data.params["seed"]) == ("simple", "0")
    assert parent.data.tags["published"] == "yes"
    assert parent.data.metrics["steps_run"] == 4
    digest = hashlib.sha256((trained / "models/model.onnx").read_bytes()).hexdigest()
    assert parent.data.tags["model.sha256"] == runs["build"].data.params["model_sha256"] == digest
    training_data = (only(trained, "preprocess") / "train.bin").read_bytes()
    data_digest = hashlib.sha256(training_data).hexdigest()
    assert runs["build"].data.params["training_data_sha256"] == data_digest
    assert runs["fit"].data.params["device_used"] in {"cpu", "cuda"}
    assert runs["evaluate"].data.metrics["images"] == IMAGES
    client = mlflow.MlflowClient(store_of(trained))
    artifacts = {
        step: {file.path for file in client.list_artifacts(run.info.run_id)}
        for step, run in runs.items()
    }
    assert artifacts == {
        "preprocess": set(),
        "fit": set(),
        "build": {"model.onnx", "metadata.json"},
        "evaluate": {"scores.json", "per_image.csv", "server.log"},
    }
    history = client.get_metric_history(runs["fit"].info.run_id, "train_loss")
    assert [metric.step for metric in history] == list(range(1, EPOCHS + 1))


def test_a_model_rejected_by_the_gate_fails_the_run_and_replaces_nothing(state: Path) -> None:
    before = {path.name: path.read_bytes() for path in (state / "models").iterdir()}
    with pytest.raises(SystemExit, match=r"not published: .* plus a margin of 0.89"):
        run_pipeline(state, "--margin=0.89")
    assert {path.name: path.read_bytes() for path in (state / "models").iterdir()} == before
    parent = runs_of(state)["simple pipeline"]
    assert (parent.info.status, parent.data.tags["published"]) == ("FAILED", "no")
    # The gate is not a step, and nothing else has changed.
    assert parent.data.metrics["steps_run"] == 0
    assert {parent.data.tags[f"step.{step}"] for step in STEPS} == {"not run again"}


def test_a_failing_step_fails_its_run_and_the_parent_run(
    state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match="fit failed with exit code 1; earlier results are kept"):
        run_pipeline(state, "--device=cuda")
    assert "use --device cpu" in capfd.readouterr().err
    runs = runs_of(state)
    assert {runs[name].info.status for name in ("simple pipeline", "fit")} == {"FAILED"}
    assert runs["fit"].data.params["device"] == "cuda"


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        *((f"--{argument}", STEPS[:1]) for argument in ("images=99", "seed=1", "data=cifar10")),
        *((f"--{argument}", ["fit"]) for argument in ("epochs=1", "threads=2", "net=vgg11")),
        *((f"--{argument}", ["fit"]) for argument in ("batch-size=8", "learning-rate=1")),
        ("--server=http://elsewhere", ["evaluate"]),
        # The gate is not a step.
        ("--margin=0.5", []),
    ],
)
def test_a_parameter_changes_the_first_step_that_depends_on_it(
    trained: Path, argument: str, changed: list[str]
) -> None:
    assert steps_to_run(parameters_of(trained, argument))[:1] == changed


def steps_to_run(parameters: Parameters) -> list[str]:
    """Returns the steps without a result, up to the first whose inputs are missing."""
    missing = []
    with suppress(train_step.StepError):
        for name in STEPS:
            if train_step.finished(train_step.directory_of(name, parameters)) is None:
                missing.append(name)
    return missing


@pytest.mark.parametrize(
    ("file", "steps"),
    [
        # The built model is the same, so evaluate is not run again.
        ("train/layers.py", ["fit", "build"]),
        ("train/nets.py", ["fit"]),
        ("app/main.py", ["evaluate"]),
        ("train/pipeline.py", []),
    ],
)
def test_changed_code_runs_the_steps_that_use_it(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, steps: list[str]
) -> None:
    for package in ("app", "train"):
        shutil.copytree(PATTERN / package, tmp_path / package, ignore=COMPILED)
    with (tmp_path / file).open("a") as source:
        source.write("\n# Another byte.\n")
    made = {name: only(state, name) for name in STEPS}
    monkeypatch.setattr(train_step, "PATTERN", tmp_path)
    parameters, run = parameters_of(state), []
    for name in STEPS:
        directory = train_step.directory_of(name, parameters)
        if train_step.finished(directory) is None:
            run.append(name)
            # Stands for running the step.
            shutil.copytree(made[name], directory)
    assert run == steps


def test_a_damaged_result_is_made_again(state: Path) -> None:
    fitted = only(state, "fit")
    before = result_of(fitted)["sha256"]
    os.truncate(fitted / "weights.npz", 1_000)
    assert steps_to_run(parameters_of(state)) == ["fit"]
    run_step("fit", state)
    assert steps_to_run(parameters_of(state)) == []
    assert result_of(fitted)["sha256"] == before


def test_a_killed_fit_resumes_after_its_last_epoch_and_gives_the_same_model(
    state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fitted = only(state, "fit")
    before = result_of(fitted)["sha256"]
    shutil.rmtree(fitted)
    command = [sys.executable, "-m", "train.fit", *options(state)]
    with subprocess.Popen(command, cwd=PATTERN, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if "epoch 1 of" in line:
                process.kill()
    partial = only(state, "fit")
    assert partial == train_step.partial_of(fitted)
    ended = len(torch.load(partial / "checkpoint.pt", weights_only=True)["history"])
    assert 1 <= ended < EPOCHS
    # A link in place of the file that the kill may have left is not followed.
    (partial / "checkpoint.pt.partial").unlink(missing_ok=True)
    (partial / "checkpoint.pt.partial").symlink_to(tmp_path / "elsewhere")
    run_step("fit", state)
    assert not (tmp_path / "elsewhere").exists()
    assert "resumes from" in capfd.readouterr().out
    assert result_of(fitted)["sha256"] == before
    assert len((fitted / "epochs.jsonl").read_text().splitlines()) == EPOCHS
    assert not (fitted / "checkpoint.pt").exists()


def test_a_fit_that_fails_at_the_very_end_repeats_no_epoch(state: Path) -> None:
    fitted = only(state, "fit")
    weights = (fitted / "weights.npz").read_bytes()
    shutil.rmtree(fitted)
    # A file in place of the directory makes the final rename fail.
    fitted.write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        run_step("fit", state)
    fitted.unlink()
    checkpoint = only(state, "fit") / "checkpoint.pt"
    kept = torch.load(checkpoint, weights_only=True)
    assert len(kept["history"]) == EPOCHS
    # A fit that repeats the last epoch would overwrite this value.
    kept["history"][-1]["test_loss"] = 99.0
    torch.save(kept, checkpoint)
    run_step("fit", state)
    last = (fitted / "epochs.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["test_loss"] == 99.0
    assert (fitted / "weights.npz").read_bytes() == weights


@pytest.mark.slow
def test_sigterm_in_fit_ends_the_step_and_fails_both_runs(state: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *options(state, "--epochs=1000")],
        cwd=PATTERN,
        env=os.environ | {"MLFLOW_TRACKING_URI": store_of(state)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert any("epoch 5 of" in line for line in process.stdout)

    def is_recorded() -> bool:
        fit = runs_of(state).get("fit")
        return fit is not None and "train_loss" in fit.data.metrics

    wait_until(is_recorded, "an epoch to be recorded", 120)
    process.terminate()
    # The step also holds the pipe, so this returns only when both have ended.
    process.stdout.read()
    process.stdout.close()
    assert process.wait() == 128 + signal.SIGTERM
    runs = runs_of(state)
    assert {runs[name].info.status for name in ("simple pipeline", "fit")} == {"FAILED"}
    # Epochs are recorded as they finish.
    assert runs["fit"].data.metrics["train_loss"] > 0


# The pipeline without MLflow, which takes seconds to import.
UNTRACKED = """
from contextlib import closing
from train.parameters import parse
from train.pipeline import pipeline
from train.step import end_in_order
end_in_order()
with closing(pipeline(parse("train", None))) as events:
    for event in events:
        print(event)
"""


@pytest.mark.parametrize("by", ["SIGTERM to the pipeline", "Ctrl-C in the terminal"])
def test_a_signal_in_evaluate_ends_the_step_and_its_server(
    state: Path, tmp_path: Path, by: str
) -> None:
    for package in ("app", "train"):
        shutil.copytree(PATTERN / package, tmp_path / package, ignore=COMPILED)
    with (tmp_path / "app/main.py").open("a") as source:
        source.write("\nimport time\n\n_predict = Model.predict\n")
        source.write("Model.predict = lambda *a: time.sleep(0.5) or _predict(*a)\n")
    process = subprocess.Popen(
        [sys.executable, "-c", UNTRACKED, *options(state)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": "."},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    # Scoring takes nearly a minute, so the signal arrives in the middle.
    while not any("running on" in log.read_text() for log in state.glob("data/*.partial/*.log")):
        assert process.poll() is None
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("app.main:app" in each.cmdline() for each in started)
    number = signal.SIGTERM if by.startswith("SIGTERM") else signal.SIGINT
    if number == signal.SIGTERM:
        process.terminate()
    else:
        os.killpg(process.pid, number)
    assert process.wait(60) == 128 + number
    assert not [each for each in started if each.is_running()]


def test_the_same_seed_gives_the_same_results_and_another_seed_does_not(
    trained: Path, tmp_path: Path
) -> None:
    for step in STEPS[:3]:
        run_step(step, tmp_path)
        same, made = only(trained, step), only(tmp_path, step)
        assert result_of(made)["sha256"] == result_of(same)["sha256"]
    for step, file in (("preprocess", "train.bin"), ("fit", "weights.npz")):
        before = only(tmp_path, step)
        run_step(step, tmp_path, "--seed=1")
        (made,) = {path for path in tmp_path.glob(f"data/{step}-*") if path.is_dir()} - {before}
        assert (made / file).read_bytes() != (before / file).read_bytes()


def test_a_step_run_by_hand_names_its_directory_and_a_missing_earlier_step(
    state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluated = only(state, "evaluate")
    shutil.rmtree(only(state, "build"))
    run_step("build", state)
    assert f"({only(state, 'build').name})" in capfd.readouterr().out
    run_step("evaluate", state)
    assert f"not run again, nothing has changed ({evaluated.name})" in capfd.readouterr().out
    with pytest.raises(SystemExit, match=r"is missing: run python -m train\.preprocess"):
        run_step("fit", tmp_path / "elsewhere")


def test_a_second_run_at_the_same_time_is_rejected(state: Path) -> None:
    with (
        FileLock(state / "data/lock"),
        pytest.raises(SystemExit, match="another process holds"),
    ):
        run_pipeline(state)


@pytest.mark.parametrize("option", ["--steps", "--output"])
def test_an_unwritable_directory_is_reported_in_one_line(state: Path, option: str) -> None:
    elsewhere = f"{option}=/sys/elsewhere"
    with pytest.raises(SystemExit, match=r"^error: cannot write into /sys/elsewhere: .*$"):
        run_pipeline(state, f"--steps={state / 'data'}", elsewhere)


def test_an_unreachable_tracking_server_is_an_error_before_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(SystemExit, match="cannot record a run"):
        run_pipeline(tmp_path, uri=f"http://127.0.0.1:{free_port()}")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["lock"]


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
def test_an_invalid_argument_is_rejected_by_its_name(
    argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse("train", None, [argument])
    assert argument.partition("=")[0] in capsys.readouterr().err


def test_without_a_terminal_the_progress_is_printed_as_lines(
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


@pytest.mark.parametrize(("images", "margin"), [(300, 0.1), (1_000, 0.1), (10_000, 0.0)])
def test_the_gate_passes_a_model_at_the_threshold_less_than_once_in_a_thousand(
    images: int, margin: float
) -> None:
    def passes(k: int) -> bool:
        scores = {"correct": k, "images": images, "different_from_training": 0}
        return rejection(scores, 10, margin) is None

    lowest = bisect_left(range(images + 1), True, key=passes)
    for k in range(0, images + 1, images // 100):
        assert passes(k) is (k >= lowest)
    assert bdtrc(lowest - 1, images, 0.1 + margin) <= 0.001
    assert bdtrc(lowest - 1, images, 0.5) > 0.999
    for k in (1, images // 10, images // 5, images):
        expected = bdtrc(k - 1, images, 0.1 + margin)
        assert np.isclose(probability_of(k, images, 0.1 + margin), expected, rtol=1e-6)


def test_a_model_that_predicts_differently_when_served_is_not_published() -> None:
    scores = {"correct": 90, "images": 100, "different_from_training": 2}
    assert "disagree" in (rejection(scores, 10, 0.1) or "")
    assert rejection(scores | {"different_from_training": 1}, 10, 0.1) is None


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


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_download_is_checked_and_converted_like_the_drawn_images(
    trained: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    write_archive(site / "a.tar.gz", IMAGES, 0)
    given = ["--data=cifar10", f"--archive-sha256={sha256(site / 'a.tar.gz')}"]
    with web(site) as url:
        run_step("preprocess", tmp_path, *given, f"--archive-url={url}/a.tar.gz")
        for name in ("train.bin", "test.bin", "statistics.json"):
            made, expected = (only(each, "preprocess") / name for each in (tmp_path, trained))
            assert made.read_bytes() == expected.read_bytes()
        # Another number of images needs no second download.
        (site / "a.tar.gz").unlink()
        run_step("preprocess", tmp_path, *given, "--images=10")


def test_without_a_network_the_error_gives_advice(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/cifar-10-binary.tar.gz"
    with pytest.raises(SystemExit) as error:
        run_step("preprocess", tmp_path, "--data=cifar10", f"--archive-url={url}")
    assert "--data synthetic" in str(error.value)
    assert str(tmp_path / "data/cifar-10-binary.tar.gz") in str(error.value)


def test_a_download_that_is_wrong_or_too_large_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "a").write_bytes(b"x" * 1_000)
    target = tmp_path / "data/archive"
    with web(site) as url:
        with pytest.raises(DataError, match="has the SHA-256"):
            fetch(f"{url}/a", "0" * 32, target, lambda *_: None)
        with pytest.raises(DataError, match="404"):
            fetch(f"{url}/nothing", "0" * 32, target, lambda *_: None)
        monkeypatch.setattr(cifar, "LARGEST_ARCHIVE", 999)
        with pytest.raises(DataError, match="larger than 999 bytes"):
            fetch(f"{url}/a", sha256(site / "a"), target, lambda *_: None)
    for address in ("ftp://example.org/a", "file:///etc/passwd", "http://", "nothing"):
        with pytest.raises(DataError, match="cannot be downloaded"):
            fetch(address, "0" * 32, target, lambda *_: None)
    assert not target.exists()
    target.write_bytes(b"another file")
    with pytest.raises(DataError, match="delete it"):
        fetch("http://example.org", "0" * 32, target, lambda *_: None)


def test_a_download_follows_no_symlink(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "a").write_bytes(b"x" * 1_000)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"keep")
    (tmp_path / "archive.partial").symlink_to(elsewhere)
    with web(site) as url:
        fetch(f"{url}/a", sha256(site / "a"), tmp_path / "archive", lambda *_: None)
    assert elsewhere.read_bytes() == b"keep"
    assert (tmp_path / "archive").read_bytes() == b"x" * 1_000


def test_a_path_in_the_archive_cannot_escape(tmp_path: Path) -> None:
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
def test_an_invalid_archive_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not a complete|lacks"):
        list(read_archive(path))


def test_a_truncated_archive_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    write_archive(path, 10, 0)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="not a complete"):
        list(read_archive(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes"),
        (b"\0" * (RECORD - 1), "not a multiple"),
        (b"\x0a" + b"\0" * (RECORD - 1), "label 10"),
    ],
)
def test_invalid_records_are_rejected(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        records(content, "data_batch_1.bin")


def test_the_drawn_classes_are_balanced_and_the_same_for_a_seed(tmp_path: Path) -> None:
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
# ImageNet's statistics on the scale of 0 to 255.
IMAGENET = [123.7, 116.3, 103.5], [58.4, 57.1, 57.4]


def some_net(name: str) -> torch.nn.Sequential:
    """Returns a network with random weights and the batch statistics of some images."""
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
    session = onnxruntime.InferenceSession(export(name, weights_of(net)))
    (predicted,) = session.run(["probabilities"], {"X": rows.astype(np.float32)})
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-4)
    # The predictions must vary, or any graph would match.
    assert np.ptp(expected, axis=0).max() > 1e-3
    net[0] = Standardise(*IMAGENET)
    session = onnxruntime.InferenceSession(export(name, weights_of(net)))
    (otherwise,) = session.run(["probabilities"], {"X": rows.astype(np.float32)})
    assert not np.allclose(otherwise, expected, rtol=0, atol=1e-4)


def learn(tmp_path: Path, count: int) -> tuple[torch.nn.Sequential, list[dict[str, float]]]:
    make_deterministic(1)
    torch.manual_seed(0)
    net = make_net("simple", MEAN, DEVIATION)
    images, labels = draw(640, np.random.default_rng(0))
    part = images.reshape(640, -1), torch.from_numpy(labels.astype(np.int64))
    settings = {"epochs": count, "batch_size": 32, "learning_rate": 0.001, "seed": 0}
    rows = epochs(net, part, part, settings, tmp_path / "checkpoint.pt", lambda: None)
    return net, list(rows)


def test_training_uses_training_mode_and_predicting_does_not(tmp_path: Path) -> None:
    net, history = learn(tmp_path, 6)
    normalisations = [layer for layer in net if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in normalisations:
        # The 20 batches of each epoch update the statistics; scoring does not.
        assert int(layer.get_buffer("num_batches_tracked")) == 120
        assert not torch.equal(
            layer.get_buffer("running_var"), torch.ones_like(layer.get_buffer("running_var"))
        )
    assert not net.training
    rows = draw(10, np.random.default_rng(1))[0].reshape(10, -1)
    net.train()
    # Dropout would make these differ.
    assert torch.equal(predict(net, rows), predict(net, rows))
    # The mean loss per image starts near ln 10, which is chance.
    assert history[0]["test_loss"] == pytest.approx(2.3, abs=0.6)
    assert history[-1]["test_loss"] < 2.0
    assert history[-1]["test_accuracy"] > 0.3


def test_the_epochs_of_a_checkpoint_are_yielded_without_training(tmp_path: Path) -> None:
    net, history = learn(tmp_path, 2)
    again, repeated = learn(tmp_path, 2)
    assert repeated == history
    for one, other in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 66, 128, 129, 1_000])
def test_batches_contain_every_row_once_and_no_single_row(rows: int) -> None:
    parts = batches(rows, 64)
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert min(len(range(rows)[part]) for part in parts) >= min(rows, 2)


# ---- Evaluation ----------------------------------------------------------------------------------


def test_the_result_of_every_image_is_kept(trained: Path) -> None:
    evaluated = only(trained, "evaluate")
    scores = json.loads((evaluated / "scores.json").read_text())
    with (evaluated / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == list(range(IMAGES))
    assert sum(row["label"] == row["predicted"] for row in rows) == scores["correct"]
    assert scores["accuracy"] == scores["correct"] / IMAGES > 0.3
    assert scores["different_from_training"] == 0
    assert set(scores["per_class"]) == set(SHAPES)
    assert sum(each["images"] for each in scores["per_class"].values()) == IMAGES
    assert scores["served_by"] == "process"
    assert 0 < scores["p50_ms"] <= scores["p99_ms"]
    assert min(float(row["milliseconds"]) for row in rows) > 0


def test_a_server_of_another_model_is_not_scored(client: httpx.Client, state: Path) -> None:
    metadata = only(state, "build") / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"sha256": "', '"sha256": "0'))
    inputs = {name: only(state, name) for name in STEPS[:3]}
    parameters = parameters_of(state, f"--server={client.base_url}")
    with pytest.raises(train_step.StepError, match="serves the model"):
        evaluate.evaluate(parameters, inputs, state)
    assert not (state / "scores.json").exists()


def test_a_server_that_does_not_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with (
        pytest.raises(train_step.StepError, match=r"the server exited: [\s\S]*no usable model"),
        evaluate.server("", tmp_path, log),
    ):
        pass
    # The cut of a longer log splits a character.
    log.write_bytes("ä".encode() * 2_000 + b"!")
    with (
        subprocess.Popen(["false"]) as ended,
        pytest.raises(train_step.StepError, match=r"the server exited: .ä+!$"),
    ):
        ended.wait()
        evaluate.wait_until_ready("http://127.0.0.1:1", ended, log)


# ---- Serving -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(trained: Path) -> Iterator[httpx.Client]:
    port = free_port()
    with (
        serve(
            [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)],
            cwd=PATTERN,
            env={"MODEL_DIRECTORY": str(trained / "models")},
            ready_url=f"http://127.0.0.1:{port}/ready",
            port=port,
        ) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client


def test_images_in_one_request_give_the_same_labels_as_one_by_one(
    client: httpx.Client, trained: Path
) -> None:
    rows = np.fromfile(only(trained, "preprocess") / "test.bin", np.uint8).reshape(-1, RECORD)
    images = rows[:4, 1:].tolist()
    labels = client.post("/predict/label", json={"data": images}).json()["prediction"]
    with (only(trained, "evaluate") / "per_image.csv").open() as file:
        assert labels == [row["predicted"] for row in csv.DictReader(file)][:4]
    # Numbers with all their digits still fit into the body limit.
    widest = [[2.2250738585072014e-308 for _ in range(RECORD - 1)]] * 4
    assert client.post("/predict/label", json={"data": widest}).status_code == 200


def test_one_request_is_predicted_at_a_time_while_health_responds() -> None:
    at_once: list[int] = []
    predicting, healthy = threading.Event(), threading.Event()

    class Waiting:
        """Blocks until `/health` has responded, which needs a free event loop."""

        labels = ("one",)
        running = 0

        def predict(self, rows: list[list[float]]) -> np.ndarray:
            self.running += 1
            at_once.append(self.running)
            predicting.set()
            assert healthy.wait(30)
            self.running -= 1
            return np.ones((len(rows), 1))

        def predict_labels(self, rows: list[list[float]]) -> list[str]:
            return ["one"] * len(self.predict(rows))

    async def ask() -> set[int]:
        api.app.state.model = Waiting()
        transport = httpx.ASGITransport(api.app)
        body = {"data": [[0] * (RECORD - 1)]}
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            paths = ["/predict", "/predict/label"] * 8
            waiting = [asyncio.create_task(client.post(path, json=body)) for path in paths]
            await asyncio.to_thread(predicting.wait, 30)
            assert (await client.get("/health")).status_code == 200
            healthy.set()
            return {(await answer).status_code for answer in waiting}

    assert asyncio.run(ask()) == {200}
    assert at_once == [1] * 16


# ---- The claim -----------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    module = "chapter2_training.cifar10.measure"
    directory = tmp_path / PATTERN.name
    measured = [sys.executable, "-m", module, "--quick", "--output", str(directory / "measure")]
    done = subprocess.run(
        measured, cwd=PATTERN.parents[1], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = load_results(directory)
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
def test_with_docker_the_model_is_scored_in_its_own_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def docker(*arguments: str) -> str:
        return subprocess.run(
            ["docker", *arguments], check=True, capture_output=True, text=True
        ).stdout

    def left_running() -> list[str]:
        names = docker("ps", "--all", "--format", "{{.Names}}").split()
        return [name for name in names if re.match("cifar10-(pipeline|server)-", name)]

    # Separate volumes, so a reader's download and results stay.
    monkeypatch.setenv("COMPOSE_PROJECT_NAME", "test-cifar10")
    compose = ["compose", "--project-directory", str(PATTERN)]
    docker(*compose, "down", "--volumes")
    trainer = [sys.executable, "train_with_docker.py", *SMALL]
    try:
        first, second = (
            subprocess.run(trainer, cwd=PATTERN, check=True, capture_output=True, text=True)
            for _ in range(2)
        )
        assert re.findall(r"^(\w+): done in", first.stdout, re.MULTILINE) == STEPS
        assert re.findall(r"^(\w+): not run again", second.stdout, re.MULTILINE) == STEPS
        name = first.stdout.split("the image ")[1].split()[0]
        described = json.loads(docker("image", "inspect", name))[0]
        assert described["Config"]["Labels"]["model.name"] == "cifar10_simple"
        assert described["Config"]["User"] == "10001:10001"
        found = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('sklearn'))"
        assert docker("run", "--rm", name, "python", "-c", found) == "None None\n"
        assert not left_running()
        # A rejected model still gets an image, and nothing keeps running.
        rejected = subprocess.run(
            [*trainer, "--epochs=0"], cwd=PATTERN, check=False, capture_output=True, text=True
        )
        assert rejected.returncode == 1
        # The reason comes last, because stdout and stderr are merged.
        assert rejected.stdout.splitlines()[-1].startswith("error: not published: ")
        assert not left_running()
        # After SIGTERM nothing keeps running either, and both runs have failed.
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
