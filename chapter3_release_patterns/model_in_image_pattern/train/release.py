"""Writes the model of a version once, so that a version never names two models."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .artifact import write_artifact


class ReleaseError(Exception):
    """The version is there already, and names another model."""


def write_once(directory: Path, model: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes the directory of a version whole and read-only, or leaves the one that is there.

    Returns the metadata as they are in the directory.

    Raises:
        ReleaseError: the directory is there and holds anything else than what is to be written.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Beside the versions, in a directory of its own: who is killed leaves half of nothing behind.
    with TemporaryDirectory(prefix=".", dir=directory.parent) as partial:
        written = Path(partial) / directory.name
        described = write_artifact(written, model, metadata)
        for path in written.iterdir():
            path.chmod(0o444)
        try:
            # Of two that come at once the first one wins: no directory that holds something is
            # replaced.
            written.rename(directory)
        except OSError as error:
            if contents(directory) != contents(written):
                raise ReleaseError(
                    f"{directory.name} is there already, and is not what this would make it: "
                    "take another VERSION"
                ) from error
    return described


def contents(directory: Path) -> dict[str, bytes]:
    """Returns the bytes of each file in a directory, none where there is no directory."""
    found = directory.iterdir() if directory.is_dir() else ()
    return {path.name: path.read_bytes() for path in found}
