"""Builds the images that measure.py compares, runs them without a network, and weighs them."""

import gzip
import json
import shutil
import subprocess
import tarfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

HERE = Path(__file__).parent
COPIED = (
    "Dockerfile",
    ".dockerignore",
    "app",
    "train",
    "requirements.txt",
    "requirements-train.txt",
)
# What a first Dockerfile looks like: the model comes in with the code, and the packages after it.
PLAIN = """
FROM python:3.11-slim
WORKDIR /service
ARG MODEL_VERSION
COPY models/$MODEL_VERSION models/$MODEL_VERSION
COPY app app
COPY requirements.txt .
RUN pip install --require-hashes -r requirements.txt
"""
READY_DEADLINE_SECONDS = 30
# Runs inside of the container, because from outside there is no way to it.
ASK = """
import json, sys
from urllib.request import urlopen
for line in sys.stdin:
    with urlopen("http://127.0.0.1:8000/predict", line.encode(), timeout=5) as answer:
        print(json.dumps(json.load(answer)["prediction"][0]))
"""


class Image(NamedTuple):
    """An image: the digest of its configuration, and those of its layers, uncompressed."""

    tag: str
    digest: str
    layers: tuple[str, ...]


def docker(*arguments: str, text: str | None = None) -> str:
    """Runs a command of Docker and returns what it printed.

    Raises:
        RuntimeError: it failed.
    """
    run = subprocess.run(
        ["docker", *arguments], input=text, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"docker {arguments[0]} failed: {run.stderr.strip()}")
    return run.stdout.strip()


def engine() -> str | None:
    """Returns the version of the engine, None where none answers."""
    try:
        return docker("version", "--format", "{{.Server.Version}}")
    except (OSError, RuntimeError):
        return None


@contextmanager
def context(models: Path) -> Iterator[Path]:
    """Gives a directory to build from: the files of this one, and other models."""
    with TemporaryDirectory() as directory:
        for name in COPIED:
            source = HERE / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, Path(directory) / name)
        shutil.copytree(models, Path(directory) / "models")
        yield Path(directory)


@contextmanager
def built(
    directory: Path, version: str, sha256: str, *, plain: bool = False, cached: bool = True
) -> Iterator[Image]:
    """Builds an image of a version, and takes its tag away at the end."""
    tag = f"ml-system-in-actions/model-in-image-pattern-measure:{uuid.uuid4().hex}"
    arguments = {"MODEL_VERSION": version}
    if not plain:
        arguments |= {"MODEL_SHA256": sha256, "SOURCE_DATE_EPOCH": "0"}
    options = [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
    options += [] if cached else ["--no-cache"]
    options += ["--file", "-"] if plain else []
    docker("build", "--quiet", "--tag", tag, *options, str(directory), text=PLAIN)
    try:
        described = json.loads(docker("image", "inspect", tag))[0]
        yield Image(tag, described["Id"], tuple(described["RootFS"]["Layers"]))
    finally:
        docker("image", "rm", tag)


def bytes_to_push(new: Image, old: Image) -> int:
    """Returns what a push sends of an image to a registry that has another one.

    That is its configuration, and the layers that the other does not have, compressed.
    """
    with TemporaryDirectory() as directory:
        saved = Path(directory) / "image.tar"
        docker("save", "--output", str(saved), new.tag)
        with tarfile.open(saved) as archive:
            manifest = json.load(member(archive, "manifest.json"))[0]
            configuration = len(member(archive, manifest["Config"]).read())
            return configuration + sum(
                compressed_bytes(member(archive, name).read())
                for digest, name in zip(new.layers, manifest["Layers"], strict=True)
                if digest not in old.layers
            )


def member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    """Opens a file of an archive.

    Raises:
        KeyError: there is no such file.
    """
    found = archive.extractfile(name)
    if found is None:
        raise KeyError(name)
    return found


def compressed_bytes(layer: bytes) -> int:
    """Returns the bytes of a layer as it is pushed; some engines keep it like that already."""
    return len(layer if layer.startswith(b"\x1f\x8b") else gzip.compress(layer, 6))


@contextmanager
def running(image: Image) -> Iterator[str]:
    """Runs an image without network, volume and right to write; gives the container."""
    options = ["--network", "none", "--read-only", "--cap-drop", "ALL"]
    container = docker("run", "--detach", *options, image.tag)
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container)


def ask(container: str, rows: list[list[float]]) -> list[list[float]]:
    """Returns the probabilities of rows, one request each, or raises a RuntimeError."""
    lines = "".join(json.dumps({"data": [row]}) + "\n" for row in rows)
    answers = docker("exec", "--interactive", container, "python", "-c", ASK, text=lines)
    return [json.loads(line) for line in answers.splitlines()]


def wait_until_ready(container: str, row: list[float]) -> None:
    """Asks until there is an answer, or raises a TimeoutError with what the container wrote."""
    deadline = time.monotonic() + READY_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            ask(container, [row])
        except RuntimeError:
            continue
        return
    raise TimeoutError(docker("logs", container))
