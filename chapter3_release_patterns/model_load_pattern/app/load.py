"""Fetches a model from the store and, if its SHA-256 matches, puts it where the server looks."""

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
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url
from pydantic import ValidationError
from pydantic_settings import SettingsError

from .settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig

log = logging.getLogger("load")

MODEL, METADATA = "model.onnx", "metadata.json"
MAX_JSON_BYTES = 1_000_000
CHUNK_BYTES = 1_000_000
# With their growing pauses, the retries take about a second.
MAX_RETRIES = 5
# A proxy of the environment decides itself which hosts can be reached.
PROXIES = {"http", "https", "all"}


class LoadError(Exception):
    """The model is missing, is not the released one, or cannot be written."""


class Release(NamedTuple):
    """The model to serve: the address and the SHA-256 of its metadata.

    The metadata contain the SHA-256 of the model next to them, so the release fixes both files.
    """

    uri: str
    sha256: str


def load(settings: Settings) -> dict[str, Any]:
    """Puts the released model into the model directory and returns its metadata.

    Raises:
        LoadError: it says why; the previous model is still in the directory.
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
    log.info("%s", shown(f"{name} version {version}, SHA-256 {digest}, in {seconds:.3f} seconds"))
    return metadata


def shown(text: str) -> str:
    """Escapes what is not printable, and hides the passwords and queries of addresses."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    # A password may contain what should have been escaped, so everything before the last @ goes.
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1?***", re.sub(r"(?<=://)\S*@", "***@", text))


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Locks the directory against concurrent loads; the lock ends with the process."""
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
    """Returns the configured release or, if there is none, the champion of the registry.

    Raises:
        LoadError: the address or the SHA-256 is missing or invalid, or the registry names a model
            in a store that is not allowed.
    """
    if settings.model_uri or settings.model_sha256:
        source, release = "MODEL_URI", Release(settings.model_uri, settings.model_sha256.lower())
    else:
        source = settings.champion_url
        champion = json_of(source, read(source, deadline))
        try:
            uri = champion["artifact_file_paths"]["onnx"]
            # A relative path is relative to the champion's URL.
            uri = uri if "://" in uri else f"{source.rpartition('/')[0]}/{uri}"
            release = Release(uri, champion["artifact_sha256"])
            allowed = {store_of(source), *map(store_of, settings.champion_stores)}
            if (store := store_of(uri)) not in allowed:
                raise LoadError(f"{source} names a model in {store}, not one of CHAMPION_STORES")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise LoadError(f"{source} names no model: {error!r}") from error
    # A release of the model alone would let anyone who can write to the store change the labels.
    if release.uri.rpartition("/")[2] != METADATA:
        raise LoadError(f"{source}: {release.uri or 'nothing'} is not the address of {METADATA}")
    if not re.fullmatch("[0-9a-f]{64}", str(release.sha256)):
        raise LoadError(
            f"{source}: the SHA-256 is {release.sha256 or 'missing'}, not 64 hex digits"
        )
    return release


def store_of(uri: str) -> str:
    """Returns the scheme and the host or bucket of an address, such as `s3://models`."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


def fetch(release: Release, settings: Settings, deadline: float) -> dict[str, Any]:
    """Writes both files of a release, the model first, and returns the metadata."""
    content = read(release.uri, deadline)
    check_digest(release.uri, hashlib.sha256(content).hexdigest(), release.sha256)
    metadata = json_of(release.uri, content)
    if missing := {"name", "version", "sha256"} - metadata.keys():
        raise LoadError(f"{release.uri} does not contain {', '.join(sorted(missing))}")

    source = release.uri.removesuffix(METADATA) + MODEL
    directory = settings.model_directory
    partial = {name: directory / f"{name}.partial" for name in (MODEL, METADATA)}
    try:
        # What a killed load has left, or a link that leads elsewhere.
        for path in partial.values():
            path.unlink(missing_ok=True)
        digest = hashlib.sha256()
        with partial[MODEL].open("xb") as file:
            for chunk in chunks(source, settings.max_model_bytes, deadline):
                digest.update(chunk)
                file.write(chunk)
        check_digest(source, digest.hexdigest(), metadata["sha256"])
        with partial[METADATA].open("xb") as file:
            file.write(content)
        # Both files are written before either is replaced. The model is replaced first, so that
        # metadata never describes a model that is not there yet.
        for name, path in partial.items():
            path.replace(directory / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return metadata


def check_digest(what: str, found: str, expected: str) -> None:
    """Raises a LoadError if a SHA-256 is not the expected one."""
    if found != expected:
        raise LoadError(f"{what}: the SHA-256 is {found}, not {expected}")


def json_of(source: str, content: bytes) -> dict[str, Any]:
    """Parses a JSON object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{source} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise LoadError(f"{source} is not a JSON object")
    return found


def read(uri: str, deadline: float) -> bytes:
    """Returns a small file of a store."""
    return b"".join(chunks(uri, MAX_JSON_BYTES, deadline))


def is_special(path: Path) -> bool:
    """Tells whether a path leads to a FIFO, a device or anything else that is not a file."""
    return path.exists() and not path.is_file()


def client_options(uri: str, timeout: timedelta) -> "ClientConfig":
    """Returns the options with which the response to a request comes from the host of the address.

    A configured SHA-256 makes plain http safe. A digest from the registry is only as trustworthy as
    the connection, so https is never downgraded.
    """
    parts = urlsplit(uri)
    options: ClientConfig = {"allow_http": parts.scheme != "https", "timeout": timeout}
    if parts.scheme in {"http", "https"} and parts.hostname and not PROXIES & getproxies().keys():
        # The library follows redirects and has no option against it. With these two, only the host
        # and its subdomains are reached directly; all others would be reached through a proxy on a
        # port that nothing can listen on.
        options |= {"proxy_url": "http://127.0.0.1:0", "proxy_excludes": parts.hostname}
    return options


def chunks(uri: str, max_bytes: int, deadline: float) -> Iterator[bytes]:
    """Yields a file at a file://, http(s)://, s3:// or gs:// address in chunks.

    This is not async, because threads left behind by obstore's async calls can abort the
    interpreter at exit, which would look like a failed load.

    Raises:
        LoadError: the file is missing, forbidden, too large, or not complete at the deadline.
    """
    folder, _, name = uri.rpartition("/")
    # obstore would treat the query as part of the file name.
    if "?" in name:
        raise LoadError(f"{uri} has a query, which is not supported")
    # Attempts start in the first half of the remaining time, and each may take the other half.
    half = timedelta(seconds=max(deadline - time.monotonic(), 0.0) / 2)
    try:
        # Opening a FIFO waits for a writer, and no deadline would end that.
        if uri.lower().startswith("file:") and is_special(Path(unquote(urlsplit(uri).path))):
            raise LoadError(f"{uri} is not a regular file")
        store = from_url(
            folder,
            client_options=client_options(uri, half),
            retry_config={"max_retries": MAX_RETRIES, "retry_timeout": half},
        )
        found = obstore.get(store, name)
        if found.meta["size"] > max_bytes:
            raise LoadError(f"{uri} has {found.meta['size']} bytes, more than {max_bytes}")
        yield from found.stream(CHUNK_BYTES)
    except (BaseError, OSError, ValueError) as error:
        # The following lines are debugging details of the library.
        reason = str(error).partition("\n")[0]
        seconds = half.total_seconds()
        raise LoadError(f"cannot read {uri} within {seconds:.1f} seconds: {reason}") from error


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        load(Settings())
    except LoadError as error:
        sys.exit(f"error: {shown(str(error))}")
    except (SettingsError, ValidationError) as error:
        sys.exit(f"error: {error}")
