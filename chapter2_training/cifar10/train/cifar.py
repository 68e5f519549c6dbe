"""Fetches and reads CIFAR-10 in its binary version, whose files hold numbers and no pickle."""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np

# The red, then the green, then the blue values of 32 rows of 32 pixels.
PIXELS = 3 * 32 * 32
# A byte for the label comes before each image.
RECORD = 1 + PIXELS
CLASSES = 10
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
LABELS_FILE = "batches.meta.txt"
LARGEST_FILE = 10_000 * RECORD
SILENCE_SECONDS = 30

Progress = Callable[[int, int], None]


class DataError(Exception):
    """The data are not there, or are not what they should be."""


def fetch(url: str, md5: str, path: Path, progress: Progress) -> None:
    """Downloads the archive to `path`, unless it is there already; `path` is whole or not there.

    `progress` is called with the bytes that are there and those that will be, 0 if unknown.

    Raises:
        DataError: it cannot be reached, or its MD5 is not the one given.
    """
    if path.is_file():
        found = digest_of(path)
        if found != md5:
            raise DataError(f"{path} has MD5 {found}, not {md5}: delete it, or name its own digest")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with (
            httpx.stream("GET", url, timeout=SILENCE_SECONDS, follow_redirects=True) as answer,
            partial.open("wb") as file,
        ):
            answer.raise_for_status()
            total = int(answer.headers.get("content-length", 0))
            for chunk in answer.iter_raw():
                file.write(chunk)
                progress(file.tell(), total)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise DataError(
            f"{url} cannot be downloaded ({error}): place the archive at {path} by hand, or use "
            "--data synthetic, which needs no network"
        ) from error
    found = digest_of(partial)
    if found != md5:
        partial.unlink()
        raise DataError(f"{url} has MD5 {found}, not {md5}: it was cut off, or is another file")
    partial.replace(path)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        # It says whether the file is the published one, of which there is no other digest.
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each file of the data set; others are passed over.

    Nothing is unpacked to where a name in the archive leads.

    Raises:
        DataError: it is no such archive, or a file is missing or too large.
    """
    wanted = {f"{FOLDER}/{name}" for name in (*TRAIN_FILES, TEST_FILE, LABELS_FILE)}
    try:
        with tarfile.open(path, "r|gz") as archive:
            for member in archive:
                if member.name in wanted and member.isfile():
                    if member.size > LARGEST_FILE:
                        raise DataError(f"{path}: {member.name} has {member.size} bytes")
                    wanted.remove(member.name)
                    content = archive.extractfile(member)
                    yield member.name.removeprefix(f"{FOLDER}/"), content.read() if content else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} is not a whole .tar.gz: {error}") from error
    if wanted:
        raise DataError(f"{path} lacks {', '.join(sorted(wanted))}")


def records(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images uint8 [rows, 3072] and labels uint8 [rows] of a file.

    Raises:
        DataError: it is empty, cut off, or has a label above 9.
    """
    if not content or len(content) % RECORD:
        raise DataError(f"{name} has {len(content)} bytes, which is no multiple of {RECORD}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    if rows[:, 0].max() >= CLASSES:
        raise DataError(f"{name} has the label {rows[:, 0].max()}; labels go from 0 to 9")
    return rows[:, 1:], rows[:, 0]


def labels(content: bytes, name: str) -> list[str]:
    """Returns the names of the ten classes.

    Raises:
        DataError: there are not ten different ones.
    """
    found = content.decode("ascii", errors="replace").split()
    if len(found) != CLASSES or len(set(found)) != CLASSES:
        raise DataError(f"{name} does not name {CLASSES} classes: {found[:20]}")
    return found
