"""Takes a new model only if it is signed, new, whole and right; until then, the old one answers.

The page has the same rules, in web/update.js.
"""

import hashlib
import json
import os
import shutil
import time
from base64 import b64decode
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from .model import Model, ModelError

PAYLOAD_TYPE = b"application/vnd.edge-release+json"
FEATURES = 64
TOLERANCE = 1e-5
MOST_ENVELOPE_BYTES = 100_000
CHUNK_BYTES = 65_536
POINTER = "current.json"
# What content of another form raises.
UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)


class RefusedError(Exception):
    """This device does not take a release; the message says why."""


class Part(NamedTuple):
    """A file of a release."""

    sha256: str
    bytes: int


class Release(NamedTuple):
    """What the publisher has signed."""

    version: int
    issued: datetime
    expires: datetime
    share: float
    model: Part
    metadata: Part
    # Rows, and the probabilities that the publisher has computed for them.
    golden: dict[str, list[list[float]]]


class Pointer(NamedTuple):
    """Which releases are installed, by digest, and what a newer one has to exceed."""

    current: str
    before: str | None
    newest: int
    issued: str


class Installed(NamedTuple):
    """A release that is ready to predict."""

    digest: str
    release: Release
    model: Model


def payload_of(content: bytes, key: Ed25519PublicKey) -> bytes:
    """Returns what an envelope contains, if the key has signed it.

    Raises:
        RefusedError: it has not.
    """
    try:
        envelope = json.loads(content)
        payload, kind = b64decode(envelope["payload"]), envelope["payloadType"].encode()
        signatures = [b64decode(each["sig"]) for each in envelope["signatures"]]
    except UNREADABLE as error:
        raise RefusedError("the envelope cannot be read") from error
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    for signature in signatures:
        with suppress(InvalidSignature):
            key.verify(signature, signed)
            if kind == PAYLOAD_TYPE:
                return payload
    raise RefusedError("it is not signed by the publisher's key")


def release_of(payload: bytes) -> Release:
    """Reads what is signed.

    Raises:
        RefusedError: it is not a release.
    """
    try:
        fields = json.loads(payload)
        parts = {name: Part(**fields[name]) for name in ("model", "metadata")}
        times = {name: datetime.fromisoformat(fields[name]) for name in ("issued", "expires")}
        return Release(**{**fields, **parts, **times})
    except UNREADABLE as error:
        raise RefusedError("the payload cannot be read") from error


def check(payload: bytes, installed: Pointer | None, now: datetime, max_bytes: int) -> Release:
    """Returns the release of a signed payload, if it may replace what is installed.

    Raises:
        RefusedError: it may not.
    """
    release = release_of(payload)
    if installed and release.version < installed.newest:
        raise RefusedError(f"version {release.version} is older than {installed.newest}")
    if installed and release.version == installed.newest:
        raise RefusedError(f"version {release.version} is signed a second time with other content")
    # A clock that shows a time before the last release was issued is wrong.
    now = max(now, datetime.fromisoformat(installed.issued)) if installed else now
    if now >= release.expires:
        expired = release.expires.date().isoformat()
        raise RefusedError(f"it has expired on {expired}; this clock says {now.date().isoformat()}")
    if (size := max(release.model.bytes, release.metadata.bytes)) > max_bytes:
        raise RefusedError(f"it is larger than {max_bytes} bytes: {size}")
    return release


def has(installed: Pointer, payload: bytes) -> bool:
    """Tells whether a payload is installed, or is the newest and was left for the one before."""
    digest = hashlib.sha256(payload).hexdigest()
    left = digest == installed.before and release_of(payload).version == installed.newest
    return left or digest == installed.current


def is_among(share: float, device: str, version: int) -> bool:
    """Tells whether a device is in the share of the fleet that gets a version first."""
    digest = hashlib.sha256(f"{device}:{version}".encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32 < share


def fetch(url: str, max_bytes: int, deadline_seconds: float) -> bytes:
    """Returns the body of a response, and at most one byte more than is allowed.

    Raises:
        OSError: the publisher is out of reach, or too slow.
    """
    deadline = time.monotonic() + deadline_seconds
    content = b""
    with urlopen(url, timeout=deadline_seconds) as response:  # noqa: S310
        while len(content) <= max_bytes and (
            chunk := response.read(min(CHUNK_BYTES, max_bytes + 1 - len(content)))
        ):
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError("the publisher is too slow")
    return content


def fetch_part(url: str, part: Part, deadline_seconds: float) -> bytes:
    content = fetch(f"{url}/releases/{part.sha256}", part.bytes, deadline_seconds)
    if len(content) < part.bytes:
        raise RefusedError(f"it is cut off after {len(content)} of {part.bytes} bytes")
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise RefusedError("its SHA-256 is another one")
    return content


def read_pointer(store: Path) -> Pointer | None:
    path = store / POINTER
    return Pointer(**json.loads(path.read_bytes())) if path.exists() else None


def open_release(store: Path, digest: str) -> Installed:
    """Loads a release of the store, and tests itself.

    Raises:
        RefusedError: the files are not whole, or the model does not compute what it should.
    """
    folder = store / digest
    try:
        payload = (folder / "release.json").read_bytes()
        model = Model(folder, FEATURES)
    except (OSError, ModelError) as error:
        raise RefusedError(f"self-test: {str(error).replace(f'{folder}: ', '')}") from error
    release = release_of(payload)
    expected = np.asarray(release.golden["probabilities"])
    found = model.run(release.golden["rows"])
    if found.shape != expected.shape or not np.abs(found - expected).max() <= TOLERANCE:
        raise RefusedError("self-test: the golden rows give other probabilities")
    return Installed(digest, release, model)


def load(store: Path) -> Installed | None:
    """Returns the release that is installed or, if its files are damaged, the one before."""
    pointer = read_pointer(store)
    for digest in (pointer.current, pointer.before) if pointer else ():
        with suppress(RefusedError):
            return open_release(store, digest) if digest else None
    return None


def install(store: Path, payload: bytes, model: bytes, metadata: bytes) -> Installed:
    """Writes a release under its digest, tests it, and replaces the pointer last.

    Whenever the device loses its power, the pointer leads to a release that is whole.

    Raises:
        RefusedError: the model does not compute what it should; nothing has changed.
    """
    digest = hashlib.sha256(payload).hexdigest()
    folder, pointer = store / digest, read_pointer(store)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("model.onnx", model),
        ("metadata.json", metadata),
        ("release.json", payload),
    ):
        write(folder / name, content)
    try:
        installed = open_release(store, digest)
    except RefusedError:
        shutil.rmtree(folder)
        raise
    flush(folder)
    release, before = installed.release, pointer.current if pointer else None
    point(store, Pointer(digest, before, release.version, release.issued.isoformat()))
    return installed


def roll_back(store: Path) -> Installed:
    """Goes back to the release before, and keeps refusing what is not newer than both.

    Raises:
        RefusedError: there is none, or it is damaged.
    """
    pointer = read_pointer(store)
    if not (pointer and pointer.before):
        raise RefusedError("there is no release before this one")
    installed = open_release(store, pointer.before)
    point(store, pointer._replace(current=pointer.before, before=pointer.current))
    return installed


def point(store: Path, pointer: Pointer) -> None:
    """Replaces the pointer, and deletes the releases to which it no longer leads."""
    partial = store / f"{POINTER}.partial"
    write(partial, json.dumps(pointer._asdict()).encode())
    partial.replace(store / POINTER)
    flush(store)
    for folder in store.iterdir():
        if folder.is_dir() and folder.name not in (pointer.current, pointer.before):
            shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush(folder: Path) -> None:
    """Writes the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def key_of(file: Path) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(file.read_text("utf-8")))


class Source(NamedTuple):
    """Where updates come from, and what this device accepts."""

    url: str
    device: str
    key: Ed25519PublicKey
    max_bytes: int
    deadline_seconds: float


def update(store: Path, source: Source, now: datetime) -> Installed | None:
    """Asks for the release that devices should have; None if this device has it already.

    Raises:
        RefusedError: it may not replace what is installed, or it is not for this device yet.
        OSError: the publisher is out of reach.
    """
    pointer = read_pointer(store)
    have = pointer.newest if pointer else 0
    asked = f"{source.url}/channel?device={source.device}&version={have}"
    content = fetch(asked, MOST_ENVELOPE_BYTES, source.deadline_seconds)
    payload = payload_of(content, source.key)
    if pointer and has(pointer, payload):
        return None
    release = check(payload, pointer, now, source.max_bytes)
    if not is_among(release.share, source.device, release.version):
        raise RefusedError(f"version {release.version} is for {release.share:.0%} of the fleet")
    parts = (release.model, release.metadata)
    found = [fetch_part(source.url, part, source.deadline_seconds) for part in parts]
    return install(store, payload, *found)
