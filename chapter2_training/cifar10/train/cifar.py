"""Downloads and reads the binary version of CIFAR-10, which contains no pickle."""

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np

# 32 x 32 pixels: first all red values, then all green, then all blue ones.
PIXELS = 3 * 32 * 32
# One byte for the label precedes each image.
RECORD = 1 + PIXELS
CLASSES = 10
FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
LABELS_FILE = "batches.meta.txt"
LARGEST_FILE = 10_000 * RECORD
# The published archive has 170,052,171 bytes.
LARGEST_ARCHIVE = 200_000_000
SILENCE_SECONDS = 30

Progress = Callable[[int, int], None]


class DataError(Exception):
    """The data are missing or invalid."""


def fetch(url: str, sha256: str, path: Path, progress: Progress) -> None:
    """Downloads the archive to `path`, unless it exists; `path` is never a partial file.

    Calls `progress` with the bytes received so far and the total, which is 0 if unknown.

    Raises:
        DataError: the URL cannot be downloaded or is too large, or its SHA-256 is not the expected.
    """
    if path.is_file():
        found = digest_of(path)
        if found != sha256:
            raise DataError(
                f"{path} has the SHA-256 {found}, not {sha256}: delete it, or pass its own digest"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        # What a killed download has left, or a link that leads elsewhere.
        partial.unlink(missing_ok=True)
        with (
            httpx.stream("GET", url, timeout=SILENCE_SECONDS, follow_redirects=True) as response,
            partial.open("xb") as file,
        ):
            response.raise_for_status()
            total = int(response.headers.get("content-length", 0))
            for chunk in response.iter_raw():
                file.write(chunk)
                if file.tell() > LARGEST_ARCHIVE:
                    raise OSError(f"it is larger than {LARGEST_ARCHIVE} bytes")
                progress(file.tell(), total)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise DataError(
            f"{url} cannot be downloaded ({error}): put the archive at {path} yourself, or use "
            "--data synthetic, which needs no network"
        ) from error
    found = digest_of(partial)
    if found != sha256:
        partial.unlink()
        raise DataError(
            f"{url} has the SHA-256 {found}, not {sha256}: it is truncated or a different file"
        )
    partial.replace(path)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each file of the data set and skips all others.

    Nothing is extracted to disk, so a path in the archive cannot escape a directory.

    Raises:
        DataError: the archive is invalid, or a file is missing or too large.
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
        raise DataError(f"{path} is not a complete .tar.gz: {error}") from error
    if wanted:
        raise DataError(f"{path} lacks {', '.join(sorted(wanted))}")


def records(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images uint8 [rows, 3072] and labels uint8 [rows] of a file.

    Raises:
        DataError: the file is empty or truncated, or has a label above 9.
    """
    if not content or len(content) % RECORD:
        raise DataError(f"{name} has {len(content)} bytes, which is not a multiple of {RECORD}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    if rows[:, 0].max() >= CLASSES:
        raise DataError(f"{name} has the label {rows[:, 0].max()}, but labels are 0 to 9")
    return rows[:, 1:], rows[:, 0]


def labels(content: bytes, name: str) -> list[str]:
    """Returns the names of the classes.

    Raises:
        DataError: the file does not contain ten different names.
    """
    found = content.decode("ascii", errors="replace").split()
    if len(found) != CLASSES or len(set(found)) != CLASSES:
        raise DataError(f"{name} does not name {CLASSES} classes: {found[:20]}")
    return found
