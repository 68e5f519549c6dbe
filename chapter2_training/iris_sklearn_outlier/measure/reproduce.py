# Copied from chapter2_training/iris_sklearn_svc/measure/reproduce.py
"""Trains in fresh processes, and compares what comes out."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

HERE = Path(__file__).parents[1]


class Trained(NamedTuple):
    """What several trainings gave: the digests of their models, and the seconds of the median."""

    digests: set[str]
    seconds: float


def train(output: Path, *options: str, pattern: Path = HERE) -> list[dict[str, Any]]:
    """Runs `python -m train` in a process of its own, and returns the metadata of its models.

    The run is recorded in a store that is thrown away.
    """
    with tempfile.TemporaryDirectory() as store:
        subprocess.run(
            [sys.executable, "-m", "train", "--output", str(output), *options],
            cwd=pattern,
            env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db"},
            check=True,
            capture_output=True,
        )
    models = sorted(output.rglob("model.onnx"))
    return [json.loads(model.with_name("metadata.json").read_bytes()) for model in models]


def train_each(output: Path, options: Iterable[list[str]]) -> Trained:
    """Trains with each of some options; the model of the last one stays in `output`."""
    digests, seconds = set(), []
    for each in options:
        begin = perf_counter()
        (metadata,) = train(output, *each)
        digests.add(metadata["sha256"])
        seconds.append(perf_counter() - begin)
    return Trained(digests, median(seconds))


def rows_equal(model: Path, rows: NDArray[np.float32], expected: NDArray[np.float64]) -> int:
    """Returns for how many rows [rows, features] a model answers what is expected, within 1e-5."""
    session = onnxruntime.InferenceSession(model)
    (answer,) = session.run([session.get_outputs()[-1].name], {"X": rows})
    return int(np.isclose(answer, expected, rtol=0, atol=1e-5).all(axis=1).sum())


def over_seeds(score: Callable[[int], dict[str, float]]) -> dict[str, float]:
    """Returns the median of each score over twenty seeds, and the lowest accuracy."""
    scores = [score(seed) for seed in range(20)]
    medians = {f"{name}_median": median(each[name] for each in scores) for name in scores[0]}
    return medians | {"accuracy_lowest": min(each["accuracy"] for each in scores)}
