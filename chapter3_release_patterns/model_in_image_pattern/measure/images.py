"""Builds the images that the measurement compares, runs them without a network, and weighs them."""

import gzip
import json
import shutil
import tarfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple

import numpy as np

from tools.measure.docker import docker

HERE = Path(__file__).parents[1]
COPIED = (
    "Dockerfile",
    ".dockerignore",
    "app",
    "train",
    "requirements.txt",
    "requirements-train.txt",
)
# What a first Dockerfile looks like: the model comes in with the code, and the packages after it.
# The packages come from the same cache as ours, so that their layer holds no cache of its own.
PLAIN = """
FROM python:3.11-slim
WORKDIR /service
ARG MODEL_VERSION
COPY models/$MODEL_VERSION models/$MODEL_VERSION
COPY app app
COPY requirements.txt .
RUN --mount=type=cache,target=/root/.cache/pip pip install --require-hashes -r requirements.txt
"""
# The place of the model's layer: the last one of ours, and below three others in the plain one.
MODEL_LAYER, PLAIN_MODEL_LAYER = -1, -4


class Image(NamedTuple):
    """An image: the digest of its configuration, and those of its layers, uncompressed."""

    tag: str
    digest: str
    layers: tuple[str, ...]


class Builds(NamedTuple):
    """A version, the same built by somebody else, and the next version built on top of that."""

    first: Image
    again: Image
    update: Image
    update_seconds: float


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


@contextmanager
def three_builds(models: Path, *, plain: bool = False) -> Iterator[Builds]:
    """Builds the first of two versions, again without a cache, and then the second one with it."""
    first, second = sorted(path.name for path in models.iterdir())
    sha256 = {
        version: json.loads((models / version / "metadata.json").read_bytes())["sha256"]
        for version in (first, second)
    }
    with context(models) as here, context(models) as there, ExitStack() as stack:

        def build(directory: Path, version: str, cached: bool) -> Image:
            image = built(directory, version, sha256[version], plain=plain, cached=cached)
            return stack.enter_context(image)

        # On another machine there is no cache, and the files have other rights and another time.
        for path in filter(Path.is_file, there.rglob("*")):
            path.chmod(0o600)
            path.touch()
        images = build(here, first, True), build(there, first, False)
        # The model is new, and the server is not.
        began = time.perf_counter()
        update = build(there, second, True)
        yield Builds(*images, update, time.perf_counter() - began)


def bytes_to_push(new: Image, old: Image) -> int:
    """Computes what a push would send of an image to a registry that has another one.

    That is its configuration, and the layers that the other does not have, each compressed by
    gzip. It is without the manifest, which lists them, and nothing is pushed.
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
    """Returns the bytes of a layer with gzip; some engines keep it like that already."""
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


def count_wrong_or_missing(answers: Sequence[list[float] | None], expected: np.ndarray) -> int:
    """Returns how many rows have no answer, or another one than is expected."""
    return sum(
        answer is None or not np.allclose(answer, row, rtol=0, atol=1e-5)
        for answer, row in zip(answers, expected, strict=True)
    )
