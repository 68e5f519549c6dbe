"""Runs a job that kills itself at a point: `python -m ... planned FILE`; `FILE` alone ends it.

Every call of the model appends its number of rows to FILE.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..app import chunks, job
from ..app.model import Model


class CountingModel(Model):
    """Counts in a file, which survives a SIGKILL, how many rows it has predicted."""

    def predict(self, rows: Any) -> NDArray[np.float32]:
        probabilities = super().predict(rows)
        with Path(sys.argv[-1]).open("a") as file:
            file.write(f"{len(rows)}\n")
        return probabilities


# The function whose return is the point.
POINTS: dict[str, tuple[Any, str]] = {
    "planned": (chunks, "plan"),
    "claimed": (chunks, "claim"),
    "read": (job, "read"),
    "predicted": (CountingModel, "predict"),
    "copied": (job, "write"),
    "committed": (job, "predict_next"),
}


def dying_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def call_and_die(*arguments: Any) -> None:
        function(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    return call_and_die


if __name__ == "__main__":
    for owner, name in map(POINTS.__getitem__, sys.argv[1:-1]):
        setattr(owner, name, dying_after(getattr(owner, name)))
    job.main(CountingModel)
