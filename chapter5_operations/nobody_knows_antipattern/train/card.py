"""Writes the card of a model: what somebody must know who has never met its makers."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .iris import FEATURES, SEED, Split

OWNER = "flowers@example.org"
# Whoever sends requests, and must be told before the unit or a label changes.
DEPENDENTS = ["client.py"]
COMMAND = ["python", "-m", "train"]
LIBRARIES = ("numpy", "onnx", "scikit-learn", "skl2onnx")


def card(split: Split, rollback_sha256: str) -> dict[str, Any]:
    """Returns the facts that the metadata of a model does not have yet.

    The data digest is the tenth fact: the metadata has it as `training_data_sha256`.
    """
    x = np.concatenate([split.x_train, split.x_test])
    return {
        "owner": OWNER,
        "code_sha256": code_sha256(),
        "split": {"seed": SEED, "train_rows": len(split.x_train), "test_rows": len(split.x_test)},
        "unit": unit_of(FEATURES),
        "versions": {name: version(name) for name in LIBRARIES},
        "retrain": COMMAND,
        "rollback_sha256": rollback_sha256,
        "dependents": DEPENDENTS,
        # Of both parts: the range is no score, and a row of the test part is no surprise.
        "range": {
            name: [float(low), float(high)]
            for name, low, high in zip(FEATURES, x.min(axis=0), x.max(axis=0), strict=True)
        },
    }


def unit_of(features: list[str]) -> str:
    """Returns the unit that the data set gives in the name of each column: `sepal length (cm)`."""
    (unit,) = {feature.rpartition("(")[2].rstrip(")") for feature in features}
    return unit


def code_sha256() -> str:
    """Returns the SHA-256 of the files that train the model, by name."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
