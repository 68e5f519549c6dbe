# Copied from chapter4_serving_patterns/web_single_pattern/train/artifact.py
"""Writes a model with the metadata that describes it, so that nobody reads half of either."""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np


def write_artifact(directory: Path, model: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes `model.onnx`, then `metadata.json`, and returns the metadata as it was written.

    The two it adds are `file`, the name of the model, and `sha256`, its digest in hexadecimal.
    """
    described = metadata | {
        "file": "model.onnx",
        "sha256": hashlib.sha256(model).hexdigest(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    # The model comes first: metadata that is there always describes a model that is there.
    write_whole(directory / "model.onnx", model)
    write_whole(directory / "metadata.json", json.dumps(described, indent=2).encode())
    return described


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file at once, so that who reads it gets the old or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Returns the command line of a trainer, which may add its own options to where it writes."""
    parser = argparse.ArgumentParser(prog="python -m train", description=description)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "models",
        help="the directory of the model and its metadata",
    )
    return parser


def summary(metadata: dict[str, Any], directory: Path) -> str:
    """Says what was written where, how good it is, and which bytes it is, a line each."""
    metrics = ", ".join(f"{name} {value}" for name, value in metadata["metrics"].items())
    return (
        f"{metadata['name']} version {metadata['version']} is in {directory}\n"
        f"{metrics}\nits SHA-256 is {metadata['sha256']}"
    )


def digest(*arrays: np.ndarray) -> str:
    """Returns the SHA-256 of the bytes of some arrays, in their order."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
