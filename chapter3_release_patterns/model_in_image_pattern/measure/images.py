"""Builds the images to compare, runs them without a network, and computes their push sizes."""

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

from tools.measure.docker import build_options, docker
from tools.read.compose import load as load_compose

HERE = Path(__file__).parents[1]
COPIED = (
    "Dockerfile",
    ".dockerignore",
    "app",
    "train",
    "requirements.txt",
    "requirements-train.txt",
)
# A naive Dockerfile, which copies the model and the code before it installs the packages. It uses
# the same indexes as ours, and the same pip cache mount, so that the layer of packages does not
# contain a cache.
PLAIN = """
FROM python:3.11-slim
WORKDIR /service
ARG MODEL_VERSION
COPY models/$MODEL_VERSION models/$MODEL_VERSION
COPY app app
COPY requirements.txt .
RUN --mount=type=cache,target=/root/.cache/pip \\
    --mount=type=secret,id=pip_index_url --mount=type=secret,id=pip_extra_index_url \\
    PIP_INDEX_URL="$(cat /run/secrets/pip_index_url)" \\
    PIP_EXTRA_INDEX_URL="$(cat /run/secrets/pip_extra_index_url)" \\
    pip install --require-hashes -r requirements.txt
"""
# The index of the model's layer: the last in ours, below three others in the naive image.
MODEL_LAYER, PLAIN_MODEL_LAYER = -1, -4


class Image(NamedTuple):
    """An image with the digests of its configuration and of its uncompressed layers."""

    tag: str
    digest: str
    layers: tuple[str, ...]


class Builds(NamedTuple):
    """A version, the same version built elsewhere, and the next version built there."""

    first: Image
    again: Image
    update: Image
    update_seconds: float


@contextmanager
def context(models: Path) -> Iterator[Path]:
    """Yields a build context: a copy of the pattern with other models."""
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
    """Builds an image of a version and removes it at the end."""
    tag = f"ml-system-in-actions/model-in-image-pattern-measure:{uuid.uuid4().hex}"
    arguments = {"MODEL_VERSION": version}
    if not plain:
        arguments |= {"MODEL_SHA256": sha256, "SOURCE_DATE_EPOCH": "0"}
    options = [word for pair in arguments.items() for word in ("--build-arg", "=".join(pair))]
    options += build_options(load_compose(HERE), "api")
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
    """Builds version one, version one again without a cache, and version two with a cache."""
    first, second = sorted(path.name for path in models.iterdir())
    sha256 = {
        version: json.loads((models / version / "metadata.json").read_bytes())["sha256"]
        for version in (first, second)
    }
    with context(models) as here, context(models) as there, ExitStack() as stack:

        def build(directory: Path, version: str, cached: bool) -> Image:
            image = built(directory, version, sha256[version], plain=plain, cached=cached)
            return stack.enter_context(image)

        # Simulates another machine: no cache, other file permissions and times.
        for path in filter(Path.is_file, there.rglob("*")):
            path.chmod(0o600)
            path.touch()
        images = build(here, first, True), build(there, first, False)
        # Only the model is new.
        began = time.perf_counter()
        update = build(there, second, True)
        yield Builds(*images, update, time.perf_counter() - began)


def bytes_to_push(new: Image, old: Image) -> int:
    """Computes the bytes that pushing an image sends to a registry that has the old image.

    These are the configuration and the new layers, compressed with gzip, without the manifest.
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
    """Opens a file in an archive."""
    found = archive.extractfile(name)
    if found is None:
        raise KeyError(name)
    return found


def compressed_bytes(layer: bytes) -> int:
    """Returns the gzip size of a layer, which some engines already store compressed."""
    return len(layer if layer.startswith(b"\x1f\x8b") else gzip.compress(layer, 6))


@contextmanager
def running(image: Image) -> Iterator[str]:
    """Runs an image without network, volumes and write access, and yields the container."""
    options = ["--network", "none", "--read-only", "--cap-drop", "ALL"]
    container = docker("run", "--detach", *options, image.tag)
    try:
        yield container
    finally:
        docker("rm", "--force", "--volumes", container)


def count_wrong_or_missing(responses: Sequence[list[float] | None], expected: np.ndarray) -> int:
    """Counts the rows whose prediction is missing or not the expected one."""
    return sum(
        response is None or not np.allclose(response, row, rtol=0, atol=1e-5)
        for response, row in zip(responses, expected, strict=True)
    )
