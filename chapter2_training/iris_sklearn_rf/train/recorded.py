# Copied from chapter2_training/iris_sklearn_svc/train/recorded.py
"""Trains inside a run of MLflow, and says what came of it."""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from matplotlib.figure import Figure
from rich.console import Console

from .artifact import summary, write_artifact
from .tracking import TrackingError, reachable, tracked

Train = Callable[[], tuple[bytes, dict[str, Any]]]
Draw = Callable[[dict[str, Any]], Figure]


def train_recorded(experiment: str, run_name: str, output: Path, train: Train, draw: Draw) -> None:
    """Records what `train` returns with what `draw` makes of it, and writes it into `output`.

    It is written last: a model that is there has its run, and one without a run replaces nothing.
    """
    written: dict[str, Any] = {}
    try:
        with tracked(experiment, run_name):
            model, metadata = train()
            with TemporaryDirectory() as directory:
                described = write_artifact(Path(directory), model, metadata)
                picture = f"{draw.__name__.removeprefix('draw_')}.png"
                record(described, Path(directory, described["file"]), {picture: draw(described)})
            written = write_model(output, model, metadata)
    except TrackingError as error:
        state = "the model is written" if written else "no model is written"
        sys.exit(f"error: {error}; {state} into {output}")
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


def record(metadata: dict[str, Any], model: Path, pictures: dict[str, Figure]) -> None:
    """Adds to the run what `metadata` says of the model, the model's file, and pictures by name.

    Raises:
        TrackingError: the server has gone, or the store cannot be written.
    """
    data = {"training_data_sha256": metadata["training_data_sha256"]}
    tags = {f"model.{name}": metadata[name] for name in ("name", "version", "sha256")}
    with reachable(mlflow.get_tracking_uri()):
        mlflow.log_params(metadata["parameters"] | data)
        mlflow.log_metrics(metadata["metrics"])
        mlflow.set_tags(tags)
        mlflow.log_artifact(str(model))
        mlflow.log_dict(metadata, "metadata.json")
        for name, figure in pictures.items():
            mlflow.log_figure(figure, name)


def write_model(output: Path, model: bytes, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes the model and its metadata, or ends the program where that cannot be."""
    try:
        return write_artifact(output, model, metadata)
    except OSError as error:
        sys.exit(f"error: no model can be written into {output}: {error.strerror}")
