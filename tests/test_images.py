"""Builds the images of every pattern and checks their user, size, content and permissions."""

import gzip
import json
import os
import shutil
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tools.measure.docker import docker
from tools.read.compose import FILE_NAME, Service, load
from tools.read.dockerfile import stage_of
from tools.read.patterns import ROOT, patterns

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1800)]

BUILT = {
    f"{pattern.relative_to(ROOT)}:{service.name}": (pattern, service)
    for pattern in patterns()
    for service in load(pattern).built()
}
# A server with a profile holds none of the pattern's code.
OF_PATTERNS = {name: found for name, found in BUILT.items() if not found[1].is_opt_in}


def trains(pattern: Path, service: Service) -> bool:
    """Tells whether the image of a service has the code of the training, so also its libraries."""
    stage = service.build and stage_of(pattern, service.build)
    copied = [rest.split() for word, rest in stage.instructions if word == "COPY"] if stage else []
    return any(words[-2:] == ["train", "train"] for words in copied)


TRAINING = {service.image for pattern, service in BUILT.values() if trains(pattern, service)}
SERVERS = {
    f"{pattern.relative_to(ROOT)}:{pattern.name}": pattern
    for pattern in patterns()
    if "train" not in load(pattern).services
}
# Megabytes that an image may add to its base image unless its Compose file gives a reason.
ADDED_MB = 220
LARGER_MB = {
    service.image: service.image_size.added_mb
    for _, service in BUILT.values()
    if service.image_size
}


def inspect(image: str) -> dict[str, Any]:
    described: dict[str, Any] = json.loads(docker("image", "inspect", image))[0]
    return described


def of_this_run(request: pytest.FixtureRequest) -> list[Path]:
    """Returns the patterns whose images this run tests."""
    names = [item.name for item in request.session.items if item.path == request.path]
    found = dict.fromkeys(pattern for pattern, _ in BUILT.values())
    return [
        pattern
        for pattern in found
        if any(f"[{pattern.relative_to(ROOT)}:" in name for name in names)
    ]


def build(pattern: Path) -> None:
    docker("compose", "--project-directory", str(pattern), "--profile", "*", "build", "--quiet")


@pytest.fixture(scope="module", autouse=True)
def images(request: pytest.FixtureRequest) -> None:
    # In parallel: the engine runs steps that several images share only once.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(build, of_this_run(request)))


@pytest.mark.parametrize(("pattern", "service"), BUILT.values(), ids=BUILT)
def test_an_image_runs_as_a_numeric_user_other_than_root(pattern: Path, service: Service) -> None:
    user = inspect(str(service.image))["Config"]["User"]
    assert user.split(":")[0].isdigit()
    assert int(user.split(":")[0]) > 0


@pytest.mark.parametrize(("pattern", "service"), BUILT.values(), ids=BUILT)
def test_an_image_adds_little_to_its_base(pattern: Path, service: Service) -> None:
    added = inspect(str(service.image))["Size"] - inspect("python:3.11-slim")["Size"]
    assert added < LARGER_MB.get(service.image, ADDED_MB) * 1_000_000


@pytest.mark.parametrize(("pattern", "service"), OF_PATTERNS.values(), ids=OF_PATTERNS)
def test_an_image_that_serves_holds_no_training_code(pattern: Path, service: Service) -> None:
    code = "import importlib.util as u; print([n for n in ('sklearn', 'torch') if u.find_spec(n)])"
    found = docker("run", "--rm", "--read-only", str(service.image), "python", "-c", code)
    assert (found == "[]") is (service.image not in TRAINING)


@pytest.mark.parametrize("pattern", SERVERS.values(), ids=SERVERS)
def test_containers_reach_each_other_without_the_proxy(
    pattern: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxies = {"httpProxy": "http://127.0.0.1:9", "httpsProxy": "http://127.0.0.1:9"}
    (tmp_path / "config.json").write_text(json.dumps({"proxies": {"default": proxies}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    override = tmp_path / "override.yml"
    unpublished = [f"  {name}: {{ports: !reset []}}\n" for name in load(pattern).services]
    override.write_text("".join(["services:\n", *unpublished]))
    files = ["--file", str(pattern / FILE_NAME), "--file", str(override)]
    compose = ["compose", *files, "--project-name", f"proxied-{os.getpid()}"]
    try:
        docker(*compose, "up", "--detach", "--no-build", "--wait")
    finally:
        docker(*compose, "down", "--volumes")


@pytest.mark.pattern("chapter2_training/model_db")
def test_a_build_uses_the_index_and_proxy_of_the_shell_and_keeps_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(ROOT / "chapter2_training/model_db", tmp_path / "copy")
    # No package, so no index is asked, and none of the layers is in the cache of builds.
    (copy / "requirements.txt").write_text(f"# {tmp_path}\n")
    dockerfile = copy / "Dockerfile"
    shown = ' && echo "proxies: $https_proxy $HTTPS_PROXY" && python -m compileall'
    dockerfile.write_text(
        dockerfile.read_text("utf-8").replace(" && \\\n    python -m compileall", shown)
    )
    compose = copy / FILE_NAME
    image = f"ml-system-in-actions/model-db-api:mirror-{os.getpid()}"
    compose.write_text(
        compose.read_text("utf-8").replace(str(load(copy).services["api"].image), image)
    )
    marker = "marker-of-a-password"
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://reader:{marker}@{name.lower().replace('_', '-')}.test")
    command = ["docker", "compose", "--progress", "plain", "--project-directory", str(copy)]
    wrote = subprocess.run([*command, "build", "api"], capture_output=True, text=True, check=True)
    try:
        output = wrote.stdout + wrote.stderr
        indexes = [
            f"http://reader:****@{name}.test" for name in ("pip-index-url", "pip-extra-index-url")
        ]
        assert f"Looking in indexes: {', '.join(indexes)}" in output
        proxies = [f"http://reader:{marker}@https-proxy.test"] * 2
        assert f"proxies: {' '.join(proxies)}" in output
        assert marker not in docker("history", "--no-trunc", image)
        assert marker not in docker("image", "inspect", image)
        docker("save", "--output", str(tmp_path / "image.tar"), image)
        with tarfile.open(tmp_path / "image.tar") as saved:
            files = [file for member in saved if (file := saved.extractfile(member))]
            assert len(files) > 5
            for file in files:
                data = file.read()
                data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
                assert marker.encode() not in data
    finally:
        docker("image", "rm", image)


@pytest.mark.pattern("chapter4_serving_patterns/web_single_pattern")
def test_the_modes_of_a_clone_do_not_matter(tmp_path: Path) -> None:
    pattern = ROOT / "chapter4_serving_patterns/web_single_pattern"
    copy = shutil.copytree(pattern, tmp_path / "copy")
    for path in [*copy.glob("app/**/*"), *copy.glob("train/**/*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    (copy / "app").chmod(0o700)
    # Without a tag, so that the image of the pattern stays the one that was built.
    image = docker("build", "--quiet", str(copy))
    assert docker("run", "--rm", image, "python", "-c", "import app.settings") == ""


@pytest.mark.parametrize(("pattern", "service"), BUILT.values(), ids=BUILT)
def test_the_user_of_an_image_cannot_write_its_files(pattern: Path, service: Service) -> None:
    # Not with --read-only, which makes everything read-only whatever its permissions.
    find = ["find", "/service", "/venv", "-writable", "-not", "-type", "l"]
    assert docker("run", "--rm", str(service.image), *find) == ""
    # The control: the same command finds files as root, who owns them.
    assert docker("run", "--rm", "--user", "0", str(service.image), *find) != ""
