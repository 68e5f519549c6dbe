"""Writes the model of a version once, so that a version never means two models."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .artifact import write_artifact


class ReleaseError(Exception):
    """The version already exists with another model."""


def write_once(directory: Path, model: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes the directory of a version atomically and read-only, and returns the metadata.

    An existing directory with the same contents is left as it is.

    Raises:
        ReleaseError: the directory exists with different contents.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Written to a temporary directory, so a killed process never leaves a half-written version.
    with TemporaryDirectory(prefix=".", dir=directory.parent) as partial:
        written = Path(partial) / directory.name
        described = write_artifact(written, model, metadata)
        for path in written.iterdir():
            path.chmod(0o444)
        try:
            # Renaming never replaces a directory that is not empty, so the first of two concurrent
            # writers wins.
            written.rename(directory)
        except OSError as error:
            if contents(directory) != contents(written):
                raise ReleaseError(
                    f"{directory.name} already exists with a different model: "
                    "choose another VERSION"
                ) from error
    return described


def contents(directory: Path) -> dict[str, bytes]:
    """Returns the content of each file; empty if the directory does not exist."""
    found = directory.iterdir() if directory.is_dir() else ()
    return {path.name: path.read_bytes() for path in found}
