"""model_in_image_pattern: a version names one model and one image, and needs nothing else."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import numpy as np
import pytest
from sklearn.datasets import load_iris

from chapter3_release_patterns.model_in_image_pattern.measure.__main__ import measure_images
from chapter3_release_patterns.model_in_image_pattern.measure.images import (
    Builds,
    Image,
    built,
    bytes_to_push,
    context,
    count_wrong_or_missing,
    running,
    three_builds,
)
from chapter3_release_patterns.model_in_image_pattern.train.__main__ import main as train_main
from chapter3_release_patterns.model_in_image_pattern.train.iris import load
from chapter3_release_patterns.model_in_image_pattern.train.model import PENALTY, fit, train
from chapter3_release_patterns.model_in_image_pattern.train.release import (
    ReleaseError,
    write_once,
)
from tools.measure.docker import ask, docker, wait_until_answered
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError, free_port
from tools.measure.servers import run_uvicorn

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter3_release_patterns/model_in_image_pattern"
PENALTIES = {"1.0.0": 1.0, "2.0.0": 10.0}
ROWS: list[list[float]] = load_iris().data.astype(np.float32).tolist()
IMAGE = "ml-system-in-actions/model-in-image-pattern-api"
# A version that no reader has, for what has to have a tag.
UNUSED = "9876.0.0"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for version, penalty in PENALTIES.items():
        write_once(directory / version, *train(version=version, penalty=penalty))
    return directory


def run_training(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "train", *arguments]
    return subprocess.run(command, cwd=PATTERN, capture_output=True, text=True, check=False)


def start(directory: Path, **environment: str) -> AbstractContextManager[Server]:
    env = {"MODEL_DIRECTORY": str(directory), **environment}
    return run_uvicorn("app.main:app", cwd=PATTERN, env=env)


def predictions(directory: Path) -> list[list[float]]:
    with start(directory) as server:
        answer = httpx.post(f"{server.url}/predict", json={"data": ROWS})
        prediction: list[list[float]] = answer.raise_for_status().json()["prediction"]
        return prediction


def sha256_of(models: Path, version: str) -> str:
    digest: str = json.loads((models / version / "metadata.json").read_text())["sha256"]
    return digest


def test_every_row_of_iris_is_answered_as_scikit_learn_would(models: Path) -> None:
    split = load()
    for version, penalty in PENALTIES.items():
        expected = fit(split.x_train, split.y_train, penalty=penalty).predict_proba(
            np.array(ROWS, np.float32)
        )
        np.testing.assert_allclose(predictions(models / version), expected, rtol=0, atol=1e-5)


def test_the_server_says_which_version_it_is(models: Path) -> None:
    with start(models / "2.0.0") as server:
        metadata = httpx.get(f"{server.url}/metadata").json()
    content = (models / "2.0.0/model.onnx").read_bytes()
    assert metadata["version"] == "2.0.0"
    assert metadata["sha256"] == hashlib.sha256(content).hexdigest()
    assert metadata["parameters"]["penalty"] == 10


def test_a_model_that_is_trained_twice_is_the_same_and_another_version_is_another(
    models: Path, tmp_path: Path
) -> None:
    write_once(tmp_path / "1.0.0", *train(penalty=PENALTIES["1.0.0"], version="1.0.0"))
    for name in ("model.onnx", "metadata.json"):
        again = (tmp_path / "1.0.0" / name).read_bytes()
        assert again == (models / "1.0.0" / name).read_bytes()
        assert again != (models / "2.0.0" / name).read_bytes()


def test_the_server_starts_and_predicts_without_calling_anybody(
    models: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "sys.addaudithook(lambda event, _: event == 'socket.connect' and os._exit(7))\n"
    )
    environment = {"PYTHONPATH": str(tmp_path)}
    with start(models / "2.0.0", **environment) as server:
        answer = httpx.post(f"{server.url}/predict", json={"data": ROWS})
        assert len(answer.json()["prediction"]) == len(ROWS)
        # Under the same watch, one that does call ends.
        call = "import socket; socket.create_connection(('127.0.0.1', 9))"
        caller = subprocess.run([sys.executable, "-c", call], env=environment, check=False)
        assert caller.returncode == 7


def test_a_version_that_is_there_stays_the_model_that_it_was(tmp_path: Path) -> None:
    write_once(tmp_path / "1.2.3", *train(version="1.2.3", penalty=PENALTY))
    options = ["--output", str(tmp_path), "--version", "1.2.3"]
    before = {path: path.read_bytes() for path in (tmp_path / "1.2.3").iterdir()}
    assert {path.stat().st_mode & 0o777 for path in before} == {0o444}
    # The same again changes nothing, another one is refused.
    assert run_training(*options).returncode == 0
    training = run_training(*options, "--penalty", "5")
    assert training.returncode == 1
    assert training.stderr == (
        "error: 1.2.3 is there already, and is not what this would make it: take another VERSION\n"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "1.2.3").iterdir()} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "1.2.3"]


def test_of_two_models_that_claim_a_version_at_once_one_gets_it_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train", "--output", str(tmp_path), "--penalty"]
    trainings = [
        subprocess.Popen([*command, penalty], cwd=PATTERN, stderr=subprocess.DEVNULL)
        for penalty in "12"
    ]
    codes = [training.wait() for training in trainings]
    assert sorted(codes) == [0, 1]
    metadata = json.loads((tmp_path / "1.0.0/metadata.json").read_text())
    content = (tmp_path / "1.0.0/model.onnx").read_bytes()
    assert metadata["sha256"] == hashlib.sha256(content).hexdigest()
    assert metadata["parameters"]["penalty"] == codes.index(0) + 1


def test_who_is_killed_half_way_leaves_no_version(tmp_path: Path) -> None:
    # The signal comes between the two files, as if the machine went off there.
    code = (
        "import os, signal, sys; from train import artifact; from train.__main__ import main\n"
        "write = artifact.write_whole\n"
        "def write_and_die(path, content):\n"
        "    write(path, content); os.kill(os.getpid(), signal.SIGKILL)\n"
        "artifact.write_whole = write_and_die; main()"
    )
    command = [sys.executable, "-c", code, "--output", str(tmp_path)]
    assert subprocess.run(command, cwd=PATTERN, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "1.0.0").exists()
    write_once(tmp_path / "1.0.0", *train(version="1.0.0", penalty=PENALTY))
    assert (tmp_path / "1.0.0/metadata.json").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *[("--version", version) for version in ("", "1", "1.0", "v1.0.0", "1.0.0\n", "../x")],
        *[("--version", version) for version in ("1.0.0/..", "latest", "1.0.0-rc1")],
        *[("--penalty", penalty) for penalty in ("0", "-1", "nan", "inf", "much", "")],
    ],
)
def test_what_is_no_version_or_no_penalty_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
) -> None:
    output = tmp_path / "models"
    monkeypatch.setattr(sys, "argv", ["train", "--output", str(output), option, value])
    with pytest.raises(SystemExit) as ended:
        train_main()
    assert ended.value.code == 2
    assert option in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("output", ["file", "file/models"])
def test_where_nothing_can_be_written_it_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["train", "--output", str(tmp_path / output)])
    with pytest.raises(SystemExit) as ended:
        train_main()
    message = str(ended.value.code)
    assert message.startswith(f"error: cannot write into {tmp_path / output}: ")
    assert "\n" not in message


def damage(directory: Path) -> None:
    path = directory / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def check(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app.check"]
    environment = {"MODEL_DIRECTORY": str(directory)}
    return subprocess.run(
        command, cwd=PATTERN, env=environment, capture_output=True, text=True, check=False
    )


def test_a_model_that_was_damaged_is_neither_rolled_out_nor_served(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models, tmp_path / "models")
    assert check(tmp_path / "models/2.0.0").returncode == 0
    damage(tmp_path / "models/2.0.0")
    refusal = check(tmp_path / "models/2.0.0")
    assert refusal.returncode == 1
    assert "the model's SHA-256 is not the one in metadata.json" in refusal.stderr
    with pytest.raises(ServerError, match="SHA-256"), start(tmp_path / "models/2.0.0"):
        pass
    with pytest.raises(ReleaseError, match=r"2\.0\.0 is there already"):
        write_once(tmp_path / "models/2.0.0", *train(penalty=PENALTIES["2.0.0"], version="2.0.0"))


def test_metadata_of_another_version_than_the_directory_are_refused(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "1.0.0", tmp_path / "2.0.0")
    refusal = check(tmp_path / "2.0.0")
    assert refusal.returncode == 1
    assert refusal.stderr == (
        f"error: {tmp_path}/2.0.0: metadata.json says version 1.0.0, and not 2.0.0\n"
    )


def test_a_version_that_is_not_there_is_named(tmp_path: Path) -> None:
    refusal = check(tmp_path / "3.0.0")
    assert refusal.returncode == 1
    assert refusal.stderr.startswith(f"error: no usable model in {tmp_path}/3.0.0")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the pattern beside everything else of the repository."""
    for path in ROOT.iterdir():
        if not path.name.startswith("chapter"):
            (tmp_path / path.name).symlink_to(path)
    copy = tmp_path / PATTERN.relative_to(ROOT)
    shutil.copytree(PATTERN, copy, ignore=shutil.ignore_patterns("models", ".local", "__pycache__"))
    return copy


def make(directory: Path, run: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", str(directory), f"RUN={run}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_verbs_keep_a_version_what_it_was(checkout: Path) -> None:
    released = make(checkout, "local", "release", "VERSION=2.0.0", "ARGS=--penalty 10")
    assert "2.0.0 is released" in released.stdout, released.stderr
    refused = make(checkout, "local", "release", "VERSION=2.0.0", "ARGS=--penalty 100")
    assert refused.returncode == 2
    assert "2.0.0 is there already" in refused.stderr
    damage(checkout / "models/2.0.0")
    for version, reason in {"2.0.0": "SHA-256", "3.0.0": "no usable model"}.items():
        refused = make(checkout, "local", "rollout", f"VERSION={version}")
        assert refused.returncode == 2
        assert reason in refused.stderr
        assert f"error: {version} cannot serve, so nothing was stopped" in refused.stderr
    assert make(checkout, "local", "withdraw", "VERSION=2.0.0").returncode == 0
    assert list((checkout / "models").iterdir()) == []


def test_training_takes_the_version_and_building_leaves_it(checkout: Path) -> None:
    trained = make(checkout, "local", "train", "VERSION=2.0.0", "ARGS=--penalty 10")
    assert "iris_svc version 2.0.0" in trained.stdout, trained.stderr
    metadata = json.loads((checkout / "models/2.0.0/metadata.json").read_text())
    assert metadata["parameters"]["penalty"] == 10
    built = make(checkout, "local", "build", "VERSION=2.0.0")
    assert built.returncode == 0, built.stderr
    assert list((checkout / "models").iterdir()) == [checkout / "models/2.0.0"]


def test_the_version_that_runs_is_not_withdrawn_and_one_that_begins_like_it_is(
    checkout: Path,
) -> None:
    compose = checkout / "docker-compose.yml"
    compose.write_text(compose.read_text().replace("8000", str(free_port())))
    for version in ("2.0.1", "2.0.10"):
        assert make(checkout, "local", "train", f"VERSION={version}").returncode == 0
    try:
        started = make(checkout, "local", "up", "VERSION=2.0.10")
        assert started.returncode == 0, started.stdout + started.stderr
        withdrawn = make(checkout, "local", "withdraw", "VERSION=2.0.1")
        assert withdrawn.returncode == 0, withdrawn.stderr
        refused = make(checkout, "local", "withdraw", "VERSION=2.0.10")
    finally:
        make(checkout, "local", "down")
    assert refused.returncode == 2
    assert "error: 2.0.10 runs: roll another one out first" in refused.stderr
    assert list((checkout / "models").iterdir()) == [checkout / "models/2.0.10"]


NO_VERSIONS = ("", "..", "latest", "1.0", "1.0.0 2.0.0", "1.0.0/..")


@pytest.mark.parametrize(
    ("verb", "version"),
    [
        *[("up", version) for version in NO_VERSIONS],
        *[(verb, "..") for verb in ("release", "rollout", "withdraw")],
    ],
)
def test_a_verb_takes_nothing_but_a_version(checkout: Path, verb: str, version: str) -> None:
    refused = make(checkout, "local", verb, f"VERSION={version}")
    assert refused.returncode == 2
    assert f'VERSION is "{version}": it is three numbers, as in 2.0.0' in refused.stderr
    assert not (checkout / "models").exists()


def measure(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chapter3_release_patterns.model_in_image_pattern.measure"]
    return subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.budget("measure --quick")
def test_what_needs_no_image_is_measured_without_docker(tmp_path: Path) -> None:
    measured = measure("--quick", "--output", str(tmp_path / "measure"))
    assert measured.returncode == 0, measured.stderr
    assert "no image is built" in measured.stderr
    results = load_results(tmp_path)
    # It claims nothing of an image.
    assert "image" not in results.claim
    assert results.counts == {"rows_that_differ_after_rollback": 0, "versions_replaced": 0}
    assert results.control == {"rows_that_differ_after_rollback": 150, "versions_replaced": 2}


def test_without_docker_nothing_is_measured_of_images_nor_written(tmp_path: Path) -> None:
    nobody = f"unix://{tmp_path}/nobody"
    refused = measure("--output", str(tmp_path / "results"), DOCKER_HOST=nobody)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: no Docker engine answers")
    assert "start Docker, or measure what needs no image with --quick" in refused.stderr
    assert refused.stdout == ""
    assert not (tmp_path / "results").exists()


def test_a_row_that_is_wrong_or_missing_is_counted() -> None:
    expected = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    assert count_wrong_or_missing(expected.tolist(), expected) == 0
    assert count_wrong_or_missing([[0.1, 0.9], [0.20002, 0.8], None], expected) == 2


@pytest.fixture(scope="module")
def ours(models: Path) -> Iterator[Builds]:
    with three_builds(models) as builds:
        yield builds


@pytest.fixture
def images(ours: Builds) -> dict[str, Image]:
    return {"1.0.0": ours.first, "2.0.0": ours.update}


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_the_images_are_as_claimed_and_those_of_the_control_are_not(
    models: Path, ours: Builds
) -> None:
    counts: dict[str, int] = {}
    control: dict[str, int] = {}
    figures: dict[str, float] = {}
    with three_builds(models, plain=True) as plain:
        measure_images(models, ours, plain, counts, control, figures)
    assert counts == {
        "images_of_two_models_in_three_builds": 2,
        "model_layers_of_two_models_in_three_builds": 2,
        "layers_pushed_for_a_model_update": 1,
        "rows_wrong_or_missing_offline": 0,
    }
    assert control == {
        "images_of_two_models_in_three_builds": 3,
        "model_layers_of_two_models_in_three_builds": 3,
        "layers_pushed_for_a_model_update": 4,
    }
    # Two builds of the same files differ in their tag and in nothing else.
    assert ours.again == ours.first._replace(tag=ours.again.tag)
    assert ours.update.layers[:-1] == ours.first.layers[:-1]
    assert figures["bytes_pushed_for_a_model_update"] < 10_000
    assert bytes_to_push(ours.update, ours.update) < figures["bytes_pushed_for_a_model_update"]
    assert figures["bytes_pushed_with_the_model_first"] > 1_000_000


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_the_same_model_is_the_same_layer_under_another_server(
    models: Path, images: dict[str, Image]
) -> None:
    with context(models) as directory:
        (directory / "app/schema.py").write_text((directory / "app/schema.py").read_text() + "\n")
        with built(directory, "1.0.0", sha256_of(models, "1.0.0")) as image:
            assert image.digest != images["1.0.0"].digest
            assert image.layers[-1] == images["1.0.0"].layers[-1]
            assert image.layers[-2] != images["1.0.0"].layers[-2]


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_the_labels_are_version_and_digest_of_the_model_inside(
    models: Path, images: dict[str, Image]
) -> None:
    for version, image in images.items():
        labels = json.loads(docker("image", "inspect", "-f", "{{json .Config.Labels}}", image.tag))
        assert labels["org.opencontainers.image.version"] == version
        inside = docker(
            *["run", "--rm", "--network", "none", image.tag, "sh", "-c"],
            'sha256sum "$MODEL_DIRECTORY/model.onnx"',
        )
        assert inside == f"{sha256_of(models, version)}  /service/models/{version}/model.onnx"
        assert labels["ml-system-in-actions.model.sha256"] == sha256_of(models, version)


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_build_of_another_model_than_was_named_fails(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path / "models")
    sha256 = sha256_of(models, "1.0.0")
    damage(tmp_path / "models/1.0.0")
    refused = pytest.raises(RuntimeError, match="sha256sum")
    with context(tmp_path / "models") as directory:
        with refused, built(directory, "1.0.0", sha256):
            pass
        with refused, built(directory, "2.0.0", sha256):
            pass


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_build_of_another_version_than_the_metadata_say_fails(
    models: Path, tmp_path: Path
) -> None:
    shutil.copytree(models / "1.0.0", tmp_path / "models/2.0.0")
    refused = pytest.raises(RuntimeError, match="grep")
    sha256 = sha256_of(models, "1.0.0")
    with context(tmp_path / "models") as directory, refused, built(directory, "2.0.0", sha256):
        pass


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_an_image_predicts_without_network_volume_and_right_to_write(
    models: Path, images: dict[str, Image]
) -> None:
    answers = []
    for version in ("1.0.0", "2.0.0", "1.0.0"):
        with running(images[version]) as container:
            wait_until_answered(container, ROWS[0])
            answers.append(ask(container, ROWS))
            expected = np.array(predictions(models / version))
            assert count_wrong_or_missing(answers[-1], expected) == 0
            # Who is no more answers nothing, and that is counted.
            docker("kill", container)
            assert count_wrong_or_missing(ask(container, ROWS), expected) == len(ROWS)
    # Rolled out and back, to the bit.
    assert answers[0] == answers[2]
    assert answers[0] != answers[1]


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_with_docker_a_version_is_released_once(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"VERSION={UNUSED}"
    tag = f"{IMAGE}:{UNUSED}"
    # A Docker after whose build the shell that has called it is killed.
    deadly = tmp_path / "deadly/docker"
    deadly.parent.mkdir()
    deadly.write_text(
        f'#!/bin/sh\n"{shutil.which("docker")}" "$@" || exit\n'
        '[ "$1" != compose ] || kill -9 $PPID\n'
    )
    deadly.chmod(0o755)
    try:
        assert make(checkout, "docker", "release", version).returncode == 0
        digest = docker("image", "inspect", "-f", "{{.Id}}", tag)
        # The same files again are the same image.
        assert make(checkout, "docker", "release", version).returncode == 0
        assert docker("image", "inspect", "-f", "{{.Id}}", tag) == digest
        # Another model is refused by the model, another server by the image.
        refused = make(checkout, "docker", "release", version, "ARGS=--penalty 5")
        assert f"{UNUSED} is there already" in refused.stderr
        code = checkout / "app/schema.py"
        code.write_text(code.read_text() + "\n")
        refused = make(checkout, "docker", "release", version)
        assert refused.returncode == 2
        assert f"error: {tag} is there already, with other contents" in refused.stderr
        assert docker("image", "inspect", "-f", "{{.Id}}", tag) == digest
        # Who is killed in between has moved no tag, and the next release takes away what is left.
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(deadly.parent), prepend=os.pathsep)
            assert make(checkout, "docker", "release", version).returncode == 2
        assert docker("image", "ls", "-q", f"{tag}-candidate") != ""
        assert docker("image", "inspect", "-f", "{{.Id}}", tag) == digest
        code.write_text((PATTERN / "app/schema.py").read_text())
        # What changes no file makes another image too.
        dockerfile = checkout / "Dockerfile"
        for line, other in {"USER 10001:10001": "USER 10002:10002", "EXPOSE 8000": ""}.items():
            dockerfile.write_text((PATTERN / "Dockerfile").read_text().replace(line, other))
            refused = make(checkout, "docker", "release", version)
            assert f"error: {tag} is there already, with other contents" in refused.stderr
        dockerfile.write_text((PATTERN / "Dockerfile").read_text())
        assert make(checkout, "docker", "release", version).returncode == 0
        assert docker("image", "inspect", "-f", "{{.Id}}", tag) == digest
        assert docker("image", "ls", "-q", f"{tag}-candidate") == ""
        # What happens to the files on this machine does not happen to the image.
        damage(checkout / "models" / UNUSED)
        docker("run", "--rm", "--network", "none", tag, "python", "-m", "app.check")
    finally:
        withdrawn = make(checkout, "docker", "withdraw", version)
    assert withdrawn.returncode == 0
    assert not (checkout / "models" / UNUSED).exists()
    refused = make(checkout, "docker", "rollout", version)
    assert refused.returncode == 2
    assert f"error: {UNUSED} cannot serve, so nothing was stopped" in refused.stderr
