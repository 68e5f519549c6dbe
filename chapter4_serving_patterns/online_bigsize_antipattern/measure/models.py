"""The models to compare, as files: the two of the pattern, a regression, a forest, fewer copies."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from ..app.model import Model
from ..app.schema import FEATURES
from ..train import model, svc
from ..train.artifact import write_artifact

TREES, SEED = 2_000, 0
# Of these the plot is made: how many copies the accuracy needs.
COPIES = (1, 10, 50, 200, 2_000)
RESAMPLES = 2_000


class Scored(NamedTuple):
    """What a model says about the test rows, and what it takes."""

    # Which of the 540 test rows are right.
    right: NDArray[np.bool_]
    row_ms: float
    load_seconds: float
    file_mb: float

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


def regression(x: NDArray[Any], y: NDArray[Any]) -> Any:
    return make_pipeline(MaxAbsScaler(), LogisticRegression(C=1)).fit(x, y)


def forest(x: NDArray[Any], y: NDArray[Any]) -> Any:
    # Both cores grow the trees, which takes seconds.
    return RandomForestClassifier(TREES, random_state=SEED, n_jobs=2).fit(x, y)


OTHERS: dict[str, Callable[[NDArray[Any], NDArray[Any]], Any]] = {
    "regression": regression,
    "forest": forest,
}


def write_others(directory: Path, metadata: dict[str, Any]) -> dict[str, Path]:
    """Trains the other models into directories of their own, which a server can load."""
    x_train, y_train, *_ = model.load()
    for name, fit in OTHERS.items():
        described = metadata | {"name": name}
        write_artifact(directory / name, svc.export(fit(x_train, y_train), name), described)
    return {name: directory / name for name in OTHERS}


def write_copies(directory: Path, metadata: dict[str, Any]) -> dict[int, Path]:
    """Writes the ensemble with fewer copies, fitted once."""
    x_train, y_train, *_ = model.load()
    pipeline = model.fit(x_train, y_train)
    for copies in COPIES:
        content = model.export(pipeline, model.draw_warps(copies))
        write_artifact(directory / f"{copies}", content, metadata)
    return {copies: directory / f"{copies}" for copies in COPIES}


def score(directory: Path, rows: int) -> Scored:
    """Loads a model, asks it for all test rows at once, and times so many rows one by one."""
    *_, x_test, y_test = model.load()
    began = time.perf_counter()
    loaded = Model(directory, FEATURES)
    load_seconds = time.perf_counter() - began
    right = loaded.predict(x_test.tolist()).argmax(axis=1) == y_test
    times = []
    for row in x_test[:rows].tolist():
        began = time.perf_counter()
        loaded.predict([row])
        times.append(time.perf_counter() - began)
    file_mb = (directory / "model.onnx").stat().st_size / 1e6
    return Scored(right, 1000 * float(np.median(times)), load_seconds, file_mb)


def metadata_of(directory: Path) -> dict[str, Any]:
    metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_bytes())
    return metadata


def difference(one: Scored, other: Scored) -> tuple[float, float, float]:
    """Returns how many points of accuracy one has more, with the 95 % interval of a bootstrap.

    The rows are resampled in pairs, because both models have the same. Source: Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: the percentile interval.
    """
    paired = 100 * (one.right.astype(float) - other.right)
    draw = np.random.default_rng(SEED)
    means = [draw.choice(paired, len(paired)).mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(paired.mean()), float(low), float(high)
