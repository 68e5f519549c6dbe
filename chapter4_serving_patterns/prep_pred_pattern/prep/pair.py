"""Reads what training has left for preprocessing: one half of the pair that it trained together."""

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .images import tensor_from
from .pixels import Preprocessing


class PairError(Exception):
    """The directory does not hold the preprocessing of a model."""


@dataclass(frozen=True)
class Half:
    """The preprocessing, and the digest that pred has to name as well."""

    pair: str
    preprocessing: Preprocessing
    labels: list[str]
    metadata: dict[str, Any]
    sample: bytes


def load(directory: Path) -> Half:
    """Reads the files of a directory, and preprocesses the sample once.

    Raises:
        PairError: a file is missing or unreadable.
    """
    try:
        file = (directory / "preprocessing.json").read_bytes()
        described = json.loads(file)
        preprocessing = Preprocessing(**described["tensor"])
        labels: list[str] = described["labels"]
        metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_bytes())
        sample = (directory / "sample.jpg").read_bytes()
        tensor_from(sample, preprocessing)
        encoded = base64.b64encode(sample).decode()
        metadata |= {"labels": labels, "sample": [encoded], "data_sample": [encoded]}
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise PairError(f"no preprocessing in {directory} (run python -m train): {what}") from error
    return Half(hashlib.sha256(file).hexdigest(), preprocessing, labels, metadata, sample)
