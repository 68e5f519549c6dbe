"""Fetches a model from the store, and puts it where the server looks once its SHA-256 is right."""

import fcntl
import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url
from pydantic import ValidationError

from .settings import Settings

log = logging.getLogger("load")

MODEL, METADATA = "model.onnx", "metadata.json"
MAX_JSON_BYTES = 1_000_000
CHUNK_BYTES = 1_000_000
# With the growing pauses between them about a second; then whoever started this may try again.
MAX_RETRIES = 5


class LoadError(Exception):
    """The model that was asked for is not there, is another one, or cannot be written."""


class Release(NamedTuple):
    """Which model is to be served: the address of one of its two files, and its SHA-256."""

    uri: str
    sha256: str


def load(settings: Settings) -> dict[str, Any]:
    """Puts the model of the release into the model directory, and returns its metadata.

    Raises:
        LoadError: it says why; what was in the directory before is still there.
    """
    began = time.monotonic()
    directory = settings.model_directory
    deadline = began + settings.load_deadline_seconds
    try:
        with only_one(directory):
            metadata = fetch(release_of(settings, deadline), settings, deadline)
    except OSError as error:
        raise LoadError(f"cannot write into {directory}: {error.strerror}") from error
    seconds = time.monotonic() - began
    name, version, digest = (metadata[key] for key in ("name", "version", "sha256"))
    log.info("%s version %s, SHA-256 %s, in %.3f seconds", name, version, digest, seconds)
    return metadata


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Keeps a second load out of the directory; the lock goes with the process, however it ends."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LoadError(f"another load is writing into {directory}") from error
        yield
    finally:
        os.close(handle)


def release_of(settings: Settings, deadline: float) -> Release:
    """Returns the release that is set or, where none is, the champion of the registry.

    Raises:
        LoadError: there is none, or it is not told by an address and a SHA-256.
    """
    if settings.model_uri or settings.model_sha256:
        source, release = "MODEL_URI", Release(settings.model_uri, settings.model_sha256.lower())
    else:
        source = settings.champion_url
        champion = json_of(source, read(source, deadline))
        try:
            uri = champion["artifact_file_paths"]["onnx"]
            # One that is no address itself is seen from where the champion is told.
            uri = uri if "://" in uri else f"{source.rpartition('/')[0]}/{uri}"
            release = Release(uri, champion["artifact_sha256"])
        except (AttributeError, KeyError, TypeError) as error:
            raise LoadError(f"{source} names no model: {error!r}") from error
    if release.uri.rpartition("/")[2] not in {MODEL, METADATA}:
        raise LoadError(f"{source}: {release.uri or 'nothing'} is no {MODEL} and no {METADATA}")
    if not re.fullmatch("[0-9a-f]{64}", str(release.sha256)):
        raise LoadError(f"{source}: its SHA-256 is {release.sha256 or 'not given'}: not 64 digits")
    return release


def fetch(release: Release, settings: Settings, deadline: float) -> dict[str, Any]:
    """Writes both files of a release, the model first, and returns the metadata.

    Metadata holds the SHA-256 of its model, so a release that names its metadata names both files
    byte for byte. One that names its model leaves the labels to who may write into the store.
    """
    folder, _, name = release.uri.rpartition("/")
    described_in, source = f"{folder}/{METADATA}", f"{folder}/{MODEL}"
    content = read(described_in, deadline)
    if name == METADATA:
        refuse_another(described_in, hashlib.sha256(content).hexdigest(), release.sha256)
    metadata = json_of(described_in, content)
    if missing := {"name", "version", "sha256"} - metadata.keys():
        raise LoadError(f"{described_in} does not say {', '.join(sorted(missing))}")
    # A model that is another one by its own metadata is not even fetched.
    if name == MODEL:
        refuse_another(f"{source}, as its metadata says", metadata["sha256"], release.sha256)

    directory = settings.model_directory
    partial = {name: directory / f"{name}.partial" for name in (MODEL, METADATA)}
    try:
        digest = hashlib.sha256()
        with partial[MODEL].open("wb") as file:
            for chunk in chunks(source, settings.max_model_bytes, deadline):
                digest.update(chunk)
                file.write(chunk)
        refuse_another(source, digest.hexdigest(), metadata["sha256"])
        partial[METADATA].write_bytes(content)
        # Nothing is replaced before all is written. The model comes first: metadata that is there
        # describes a model that is there.
        for name, path in partial.items():
            path.replace(directory / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return metadata


def refuse_another(what: str, found: str, expected: str) -> None:
    """Raises a LoadError if a SHA-256 is not the expected one."""
    if found != expected:
        raise LoadError(f"{what}: the SHA-256 is {found}, not {expected}")


def json_of(source: str, content: bytes) -> dict[str, Any]:
    """Returns the object that a JSON file holds."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{source} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{source} holds no JSON object")
    return found


def read(uri: str, deadline: float) -> bytes:
    """Returns a small file."""
    return b"".join(chunks(uri, MAX_JSON_BYTES, deadline))


def chunks(uri: str, max_bytes: int, deadline: float) -> Iterator[bytes]:
    """Yields a file of a store, which file://, http(s)://, s3:// or gs:// names, piece by piece.

    Nothing here is async: threads that obstore's async calls leave behind can abort an
    interpreter that is ending, and who started this would see a failure that was none.

    Raises:
        LoadError: it is not there, not allowed, too large, or not complete at the deadline.
    """
    folder, _, name = uri.rpartition("/")
    # A store has names; obstore would take the query as a part of one.
    if "?" in name:
        raise LoadError(f"{uri} has a query, which is not supported")
    # Tries begin in the first half of what is left, and each has as much time again.
    half = timedelta(seconds=max(deadline - time.monotonic(), 0.0) / 2)
    try:
        store = from_url(
            folder,
            # A SHA-256 that is set tells whether the bytes are right, whatever they came through.
            # One that comes from the champion is worth what its own way is: https stays https.
            client_options={"allow_http": not uri.startswith("https://"), "timeout": half},
            retry_config={"max_retries": MAX_RETRIES, "retry_timeout": half},
        )
        found = obstore.get(store, name)
        if found.meta["size"] > max_bytes:
            raise LoadError(f"{uri} has {found.meta['size']} bytes, more than {max_bytes}")
        yield from found.stream(CHUNK_BYTES)
    except (BaseError, OSError, ValueError) as error:
        # What follows the first line is for those who debug the library.
        reason = str(error).partition("\n")[0]
        seconds = half.total_seconds()
        raise LoadError(f"cannot read {uri} within {seconds:.1f} seconds: {reason}") from error


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        load(Settings())
    except (LoadError, ValidationError) as error:
        sys.exit(f"error: {error}")
