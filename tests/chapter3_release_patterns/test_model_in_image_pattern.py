"""Tests that a version of model_in_image_pattern always means one model and one image."""

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

from chapter3_release_patterns.model_in_image_pattern import release
from chapter3_release_patterns.model_in_image_pattern.measure.__main__ import (
    measure_images,
    probabilities_of,
)
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
    write_once,
)
from tools.measure.docker import ask, docker, wait_until_answered
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError
from tools.measure.servers import run_uvicorn
from tools.read.compose import load as load_compose
from tools.run.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter3_release_patterns/model_in_image_pattern"
PENALTIES = {"1.0.0": 1.0, "2.0.0": 10.0}
ROWS: list[list[float]] = load_iris().data.astype(np.float32).tolist()
IMAGE = "ml-system-in-actions/model-in-image-pattern-api"
# A version that no reader has, for tests that must use a tag.
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


def sha256_of(models: Path, version: str) -> str:
    digest: str = json.loads((models / version / "metadata.json").read_text())["sha256"]
    return digest


def test_a_server_predicts_as_its_version_was_trained(models: Path) -> None:
    split = load()
    rows = np.array(ROWS, np.float32)
    expected = fit(split.x_train, split.y_train, penalty=PENALTIES["2.0.0"]).predict_proba(rows)
    with start(models / "2.0.0") as server:
        metadata = httpx.get(f"{server.url}/metadata").json()
        found = httpx.post(f"{server.url}/predict", json={"data": ROWS}).json()["prediction"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert (metadata["version"], metadata["parameters"]["penalty"]) == ("2.0.0", 10)


def test_an_existing_version_never_changes(tmp_path: Path) -> None:
    write_once(tmp_path / "1.2.3", *train(version="1.2.3", penalty=PENALTY))
    options = ["--output", str(tmp_path), "--version", "1.2.3"]
    before = {path: path.read_bytes() for path in (tmp_path / "1.2.3").iterdir()}
    assert {path.stat().st_mode & 0o777 for path in before} == {0o444}
    # Training the same model again changes nothing, and another model is refused.
    assert run_training(*options).returncode == 0
    training = run_training(*options, "--penalty", "5")
    assert training.returncode == 1
    assert training.stderr == (
        "error: 1.2.3 already exists with a different model: choose another VERSION\n"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "1.2.3").iterdir()} == before
    assert list(tmp_path.iterdir()) == [tmp_path / "1.2.3"]


def test_one_of_two_concurrent_trainings_gets_the_version(tmp_path: Path) -> None:
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


def test_a_killed_training_leaves_no_version(tmp_path: Path) -> None:
    # The process is killed between writing the two files.
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
def test_an_invalid_version_or_penalty_is_refused(
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


def test_an_unwritable_output_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "file/models"
    output.parent.touch()
    monkeypatch.setattr(sys, "argv", ["train", "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        train_main()
    message = str(ended.value.code)
    assert message.startswith(f"error: cannot write into {output}: ")
    assert "\n" not in message


def test_an_unwritable_directory_of_models_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "HERE", Path("/sys"))
    with pytest.raises(release.ReleaseError, match=r"^cannot create /sys/models: .* writable$"):
        release.train("docker", "1.0.0", [])


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


def test_a_damaged_model_is_neither_rolled_out_nor_served(models: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(models / "2.0.0", tmp_path / "2.0.0")
    assert check(directory).returncode == 0
    damage(directory)
    refusal = check(directory)
    assert refusal.returncode == 1
    assert "its SHA-256 does not match" in refusal.stderr
    with pytest.raises(ServerError, match="SHA-256"), start(directory):
        pass
    # Metadata of another version is refused too.
    refusal = check(shutil.copytree(models / "1.0.0", tmp_path / "3.0.0"))
    assert refusal.returncode == 1
    assert "metadata.json says version 1.0.0, not 3.0.0" in refusal.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the pattern next to links to the rest of the repository."""
    for path in ROOT.iterdir():
        if not path.name.startswith("chapter"):
            (tmp_path / path.name).symlink_to(path)
    copy = tmp_path / PATTERN.relative_to(ROOT)
    shutil.copytree(PATTERN, copy, ignore=shutil.ignore_patterns("models", ".local", "__pycache__"))
    return copy


def make(directory: Path, run: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", str(directory), f"RUN={run}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_running_version_is_not_withdrawn_but_one_with_the_same_prefix_is(
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
    assert "error: 2.0.10 is running: roll out another version first" in refused.stderr
    assert list((checkout / "models").iterdir()) == [checkout / "models/2.0.10"]


@pytest.mark.parametrize(
    ("verb", "version"),
    [
        *[("up", version) for version in ("", "latest", "1.0", "1.0.0 2.0.0", "1.0.0/..")],
        *[(verb, "..") for verb in ("release", "rollout", "withdraw")],
    ],
)
def test_make_refuses_an_invalid_version(checkout: Path, verb: str, version: str) -> None:
    refused = make(checkout, "local", verb, f"VERSION={version}")
    assert refused.returncode == 2
    assert f'VERSION is "{version}": it must be three numbers, as in 2.0.0' in refused.stderr
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
def test_the_claim_about_versions_holds_without_docker(tmp_path: Path) -> None:
    measured = measure("--quick", "--output", str(tmp_path / "measure"))
    assert measured.returncode == 0, measured.stderr
    assert "no images are built" in measured.stderr
    results = load_results(tmp_path)
    # The claim says nothing about images.
    assert "image" not in results.claim
    assert results.counts == {"rows_that_differ_after_rollback": 0, "versions_replaced": 0}
    assert results.control == {"rows_that_differ_after_rollback": 150, "versions_replaced": 2}


def test_measuring_images_without_docker_is_an_error(tmp_path: Path) -> None:
    nobody = f"unix://{tmp_path}/nobody"
    refused = measure("--output", str(tmp_path / "results"), DOCKER_HOST=nobody)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: no Docker engine answers")
    assert "start Docker, or use --quick to measure without images" in refused.stderr
    assert not (tmp_path / "results").exists()


def test_wrong_and_missing_rows_are_counted() -> None:
    expected = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    assert count_wrong_or_missing(expected.tolist(), expected) == 0
    assert count_wrong_or_missing([[0.1, 0.9], [0.20002, 0.8], None], expected) == 2


@pytest.mark.parametrize("plain", [False, True], ids=["ours", "plain"])
def test_the_images_are_built_with_the_indexes_and_proxies_of_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    described = json.dumps([{"Id": "", "RootFS": {"Layers": []}}])
    log = tmp_path / "log"
    logging = f'#!/bin/sh\n[ "$1" != build ] || (echo "$*"; cat) >{log}\necho \'{described}\'\n'
    (tmp_path / "docker").write_text(logging)
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with built(PATTERN, "1.0.0", "", plain=plain):
        command, _, dockerfile = log.read_text().partition("\n")
    compose = load_compose(PATTERN)
    for name, variable in compose.secrets.items():
        assert f" --secret id={name},env={variable} " in command
        assert f"--mount=type=secret,id={name} " in dockerfile
        assert f'{variable}="$(cat /run/secrets/{name})"' in dockerfile
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        assert f" --build-arg {name} " in command


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
    # Two builds of the same files differ only in their tag.
    assert ours.again == ours.first._replace(tag=ours.again.tag)
    assert ours.update.layers[:-1] == ours.first.layers[:-1]
    assert figures["bytes_pushed_for_a_model_update"] < 10_000
    assert bytes_to_push(ours.update, ours.update) < figures["bytes_pushed_for_a_model_update"]
    assert figures["bytes_pushed_with_the_model_first"] > 1_000_000


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_the_layer_of_the_model_does_not_depend_on_the_server(
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
def test_the_labels_are_the_version_and_digest_of_the_model(
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
def test_a_build_with_another_digest_or_version_than_the_model_has_fails(
    models: Path, tmp_path: Path
) -> None:
    sha256 = sha256_of(models, "1.0.0")
    shutil.copytree(models, tmp_path / "models")
    shutil.copytree(models / "1.0.0", tmp_path / "models/3.0.0")
    damage(tmp_path / "models/1.0.0")
    with context(tmp_path / "models") as directory:
        for version, check in {"1.0.0": "sha256sum", "2.0.0": "sha256sum", "3.0.0": "grep"}.items():
            with (
                pytest.raises(RuntimeError, match=check),
                built(directory, version, sha256),
            ):
                pass


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_an_image_predicts_without_network_volumes_or_write_access(
    models: Path, images: dict[str, Image]
) -> None:
    responses = []
    for version in ("1.0.0", "2.0.0", "1.0.0"):
        with running(images[version]) as container:
            wait_until_answered(container, ROWS[0])
            responses.append(ask(container, ROWS))
            expected = probabilities_of(models / version)
            assert count_wrong_or_missing(responses[-1], expected) == 0
            # The control: every row of a killed container is missing.
            docker("kill", container)
            assert count_wrong_or_missing(ask(container, ROWS), expected) == len(ROWS)
    # Rolled out and back, the predictions are bit-identical.
    assert responses[0] == responses[2]
    assert responses[0] != responses[1]


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_with_docker_a_version_is_released_once(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = f"VERSION={UNUSED}"
    tag = f"{IMAGE}:{UNUSED}"
    # A docker command that kills its caller after a build.
    deadly = tmp_path / "deadly/docker"
    deadly.parent.mkdir()
    deadly.write_text(
        f'#!/bin/sh\n"{shutil.which("docker")}" "$@" || exit\n'
        'case "$*" in "compose "*" build"*) kill -9 $PPID ;; esac\n'
    )
    deadly.chmod(0o755)
    try:
        assert make(checkout, "docker", "release", version).returncode == 0
        digest = docker("image", "inspect", "-f", "{{.Id}}", tag)
        # The same files give the same image again.
        assert make(checkout, "docker", "release", version).returncode == 0
        assert docker("image", "inspect", "-f", "{{.Id}}", tag) == digest
        # Another model is refused by its directory, other server code by the image.
        refused = make(checkout, "docker", "release", version, "ARGS=--penalty 5")
        assert f"{UNUSED} already exists" in refused.stderr
        code = checkout / "app/schema.py"
        code.write_text(code.read_text() + "\n")
        refused = make(checkout, "docker", "release", version)
        assert refused.returncode == 2
        assert f"error: {tag} already exists with different contents" in refused.stderr
        assert docker("image", "inspect", "-f", "{{.Id}}", tag) == digest
        # A killed release has not moved the tag, and the next one removes the temporary tag.
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(deadly.parent), prepend=os.pathsep)
            assert make(checkout, "docker", "release", version).returncode == 2
        assert docker("image", "ls", "-q", f"{tag}-candidate") != ""
        assert docker("image", "inspect", "-f", "{{.Id}}", tag) == digest
        code.write_text((PATTERN / "app/schema.py").read_text())
        # A change of the image's settings is another image too.
        dockerfile = checkout / "Dockerfile"
        for line, other in {"USER 10001:10001": "USER 10002:10002", "EXPOSE 8000": ""}.items():
            dockerfile.write_text((PATTERN / "Dockerfile").read_text().replace(line, other))
            refused = make(checkout, "docker", "release", version)
            assert f"error: {tag} already exists with different contents" in refused.stderr
        dockerfile.write_text((PATTERN / "Dockerfile").read_text())
        assert make(checkout, "docker", "release", version).returncode == 0
        assert docker("image", "inspect", "-f", "{{.Id}}", tag) == digest
        assert docker("image", "ls", "-q", f"{tag}-candidate") == ""
        # Damaging the file on this machine does not affect the image.
        damage(checkout / "models" / UNUSED)
        docker("run", "--rm", "--network", "none", tag, "python", "-m", "app.check")
    finally:
        withdrawn = make(checkout, "docker", "withdraw", version)
    assert withdrawn.returncode == 0
    assert not (checkout / "models" / UNUSED).exists()
    refused = make(checkout, "docker", "rollout", version)
    assert refused.returncode == 2
    assert f"error: {UNUSED} cannot serve, so the running version was not stopped" in refused.stderr
