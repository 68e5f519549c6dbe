# Copied from chapter4_serving_patterns/web_single_pattern/train/artifact.py
"""Writes a model and its metadata so that a reader never sees a half-written file."""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def write_artifact(directory: Path, model: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes `model.onnx`, then `metadata.json`, and returns the metadata as written.

    It adds two fields: `file`, the name of the model file, and `sha256`, its hex digest.
    """
    described = metadata | {
        "file": "model.onnx",
        "sha256": hashlib.sha256(model).hexdigest(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    # The model comes first: once metadata.json exists, the model it describes exists too.
    write_whole(directory / "model.onnx", model)
    write_whole(directory / "metadata.json", json.dumps(described, indent=2).encode())
    return described


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file atomically: a reader gets either the old content or the new."""
    partial = path.with_name(f"{path.name}.partial")
    # What a killed training has left, or a link that leads elsewhere.
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:
        file.write(content)
    partial.replace(path)


@contextmanager
def writing_to(directory: Path) -> Iterator[None]:
    """Ends the program with one line if the directory cannot be written."""
    try:
        yield
    except OSError as error:
        advice = "make it writable, or choose another directory"
        sys.exit(f"error: cannot write into {directory}: {error.strerror}; {advice}")


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the option `--output`; a trainer may add its own options."""
    parser = argparse.ArgumentParser(prog="python -m train", description=description)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "models",
        help="directory for the model and its metadata",
    )
    return parser


def summary(metadata: dict[str, Any], directory: Path) -> str:
    """Returns three lines: where the model is, its metrics and its SHA-256."""
    metrics = ", ".join(f"{name} {value}" for name, value in metadata["metrics"].items())
    return (
        f"{metadata['name']} version {metadata['version']} is in {directory}\n"
        f"{metrics}\nits SHA-256 is {metadata['sha256']}"
    )


def digest(*arrays: np.ndarray) -> str:
    """Returns the SHA-256 of the bytes of the arrays, in the given order."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
