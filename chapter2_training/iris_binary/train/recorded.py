# Copied from chapter2_training/iris_sklearn_svc/train/recorded.py
"""Trains inside a run of MLflow, and says what came of it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from .artifact import summary, write_artifact
from .tracking import TrackingError, record, tracked

Train = Callable[[], tuple[bytes, dict[str, Any]]]
Draw = Callable[[dict[str, Any]], Figure]


def train_recorded(experiment: str, run_name: str, output: Path, train: Train, draw: Draw) -> None:
    """Writes what `train` returns into `output`, and records it with what `draw` makes of it."""
    try:
        with tracked(experiment, run_name):
            model, metadata = train()
            written = write_artifact(output, model, metadata)
            picture = f"{draw.__name__.removeprefix('draw_')}.png"
            record(written, output / written["file"], {picture: draw(written)})
    except TrackingError as error:
        sys.exit(f"error: {error}")
    Console(soft_wrap=True, highlight=False).print(summary(written, output))
