# Copied from chapter2_training/iris_sklearn_svc/measure/reproduce.py
"""Repeats a training in fresh processes and compares the models."""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

HERE = Path(__file__).parents[1]
# Recording the run would import MLflow, which takes longer than the training.
UNTRACKED = """
import hashlib, sys
from train.model import train
print(hashlib.sha256(train(*sys.argv[1:])[0]).hexdigest())
"""


def reproduce(model: bytes, *arguments: str, processes: int) -> set[str]:
    """Returns the digests of `model` and of what fresh processes train with the same arguments."""
    command = [sys.executable, "-c", UNTRACKED, *arguments]
    fresh = (subprocess.check_output(command, cwd=HERE, text=True) for _ in range(processes))
    return digests_of([model]) | {digest.strip() for digest in fresh}


def train_seconds(processes: int = 5) -> float:
    """Returns the median time of `python -m train`, which also records its run."""
    seconds = []
    for _ in range(processes):
        with tempfile.TemporaryDirectory() as name:
            begin = perf_counter()
            subprocess.run(
                [sys.executable, "-m", "train", "--output", f"{name}/models"],
                cwd=HERE,
                env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db"},
                check=True,
                capture_output=True,
            )
            seconds.append(perf_counter() - begin)
    return median(seconds)


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
