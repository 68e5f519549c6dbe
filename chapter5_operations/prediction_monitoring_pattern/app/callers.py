"""Draws what simulated callers send, as usual or with one planted fault."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
# The bandwidth of the smoothing, relative to the deviation of a feature within a class.
SMOOTHING = 0.3


class Iris(NamedTuple):
    """Real flowers [rows, 4] with the label of each."""

    rows: Rows
    labels: NDArray[np.str_]


class Drawn(NamedTuple):
    """Rows, and the labels that callers report for them later."""

    rows: Rows
    labels: NDArray[np.str_]


Fault = Callable[[np.random.Generator, Iris, Drawn], Drawn]


def load(directory: Path) -> Iris:
    content = json.loads((directory / "iris.json").read_bytes())
    return Iris(np.array(content["data"]), np.array(content["labels"]))


def draw(random: np.random.Generator, iris: Iris, count: int) -> Drawn:
    """Draws flowers, and moves each a little within its class; measured to a tenth, as iris is."""
    picked = random.integers(len(iris.rows), size=count)
    labels = iris.labels[picked]
    deviation = np.empty((count, iris.rows.shape[1]))
    for label in np.unique(labels):
        deviation[labels == label] = iris.rows[iris.labels == label].std(axis=0)
    noise = random.normal(size=deviation.shape) * deviation * SMOOTHING
    return Drawn(np.round(iris.rows[picked] + noise, 1), labels)


def scale(_: np.random.Generator, __: Iris, drawn: Drawn) -> Drawn:
    """Another unit, or a camera that is nearer."""
    return drawn._replace(rows=drawn.rows * 1.094)


def shift(_: np.random.Generator, iris: Iris, drawn: Drawn) -> Drawn:
    """A quarter of a deviation in one feature."""
    rows = drawn.rows.copy()
    rows[:, 2] += iris.rows[:, 2].std() / 4
    return drawn._replace(rows=rows)


def vanish(random: np.random.Generator, iris: Iris, drawn: Drawn) -> Drawn:
    """No flower of one class any more."""
    return draw(random, Iris(*(part[iris.labels != "virginica"] for part in iris)), len(drawn.rows))


def outliers(random: np.random.Generator, iris: Iris, drawn: Drawn) -> Drawn:
    """Nearly a third of the rows have nothing to do with flowers."""
    noise = random.uniform(iris.rows.min(axis=0) - 1, iris.rows.max(axis=0) + 1, drawn.rows.shape)
    is_noise = random.random(len(noise)) < 0.3
    return drawn._replace(rows=np.where(is_noise[:, None], noise, drawn.rows))


def mix(random: np.random.Generator, iris: Iris, drawn: Drawn) -> Drawn:
    """Each feature is that of another flower: every single one looks as it always did."""
    columns = [draw(random, iris, len(drawn.rows)).rows[:, i] for i in range(drawn.rows.shape[1])]
    return drawn._replace(rows=np.stack(columns, axis=1))


def swap(_: np.random.Generator, __: Iris, drawn: Drawn) -> Drawn:
    """The same flowers have other names."""
    names = {"versicolor": "virginica", "virginica": "versicolor"}
    return drawn._replace(labels=np.array([names.get(name, name) for name in drawn.labels]))


def repeat(random: np.random.Generator, iris: Iris, drawn: Drawn) -> Drawn:
    """A third of the requests are one and the same."""
    is_same = random.random(len(drawn.rows)) < 0.33
    return drawn._replace(rows=np.where(is_same[:, None], iris.rows[60], drawn.rows))


# What changes the rows or the labels; what changes the rate is in job.py.
FAULTS: dict[str, Fault] = {
    "scale": scale,
    "shift": shift,
    "vanish": vanish,
    "outliers": outliers,
    "mix": mix,
    "swap": swap,
    "repeat": repeat,
}
