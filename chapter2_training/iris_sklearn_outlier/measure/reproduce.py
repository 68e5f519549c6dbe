# Copied from chapter2_training/iris_sklearn_svc/measure/reproduce.py
"""Repeats a training in fresh processes and compares the models."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

HERE = Path(__file__).parents[1]
# Trains as `python -m train` does, without importing MLflow.
UNTRACKED = """
import hashlib, sys
from train.model import train
print(hashlib.sha256(train(*sys.argv[1:])[0]).hexdigest())
"""


class Reproduced(NamedTuple):
    """The digests of all models, and the median time of a training if it was measured."""

    digests: set[str]
    figures: dict[str, float]


def reproduce(model: bytes, *options: str, processes: int) -> Reproduced:
    """Trains in fresh processes with the options that gave `model`."""
    digests, seconds = digests_of([model]), []
    for _ in range(processes):
        begin = perf_counter()
        digests.add(train_afresh(*options))
        seconds.append(perf_counter() - begin)
    return Reproduced(digests, {"train_seconds": median(seconds)})


def reproduce_untracked(model: bytes, *arguments: str) -> Reproduced:
    """Trains in one fresh process, which calls `train` with the arguments and records no run."""
    fresh = subprocess.run(
        [sys.executable, "-c", UNTRACKED, *arguments],
        cwd=HERE,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()
    return Reproduced(digests_of([model]) | {fresh}, {})


def train_afresh(*options: str) -> str:
    """Runs `python -m train` with a temporary store and returns the digest of its model."""
    with tempfile.TemporaryDirectory() as name:
        models = Path(name, "models")
        subprocess.run(
            [sys.executable, "-m", "train", "--output", str(models), *options],
            cwd=HERE,
            env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db"},
            check=True,
            capture_output=True,
        )
        digest: str = json.loads((models / "metadata.json").read_bytes())["sha256"]
    return digest


def digests_of(models: Iterable[bytes]) -> set[str]:
    return {hashlib.sha256(model).hexdigest() for model in models}


def rows_equal(
    model: bytes | Path, rows: NDArray[np.float32], expected: NDArray[np.float64]
) -> int:
    """Counts the rows whose prediction equals the expected one within 1e-5."""
    session = onnxruntime.InferenceSession(model)
    (predicted,) = session.run([session.get_outputs()[-1].name], {"X": rows})
    return int(np.isclose(predicted, expected, rtol=0, atol=1e-5).all(axis=1).sum())


def over_seeds(score: Callable[[int], dict[str, float]], seeds: int = 20) -> dict[str, float]:
    """Returns the median of each score over several seeds, and the lowest accuracy."""
    scores = [score(seed) for seed in range(seeds)]
    medians = {f"{name}_median": median(each[name] for each in scores) for name in scores[0]}
    return medians | {"accuracy_lowest": min(each["accuracy"] for each in scores)}
