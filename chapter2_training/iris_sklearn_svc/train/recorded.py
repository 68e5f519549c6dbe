"""Trains inside an MLflow run, then writes the model."""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from matplotlib.figure import Figure
from rich.console import Console

from .artifact import summary, write_artifact, writing_to
from .tracking import TrackingError, reachable, tracked

Train = Callable[[], tuple[bytes, dict[str, Any]]]
Draw = Callable[[dict[str, Any]], Figure]


def train_recorded(experiment: str, run_name: str, output: Path, train: Train, draw: Draw) -> None:
    """Records the model that `train` returns and its plot, then writes the model into `output`.

    The model is written last, so every model in `output` has a run, and a training that cannot be
    recorded replaces nothing.
    """
    written: dict[str, Any] = {}
    try:
        with tracked(experiment, run_name):
            model, metadata = train()
            with TemporaryDirectory() as directory:
                described = write_artifact(Path(directory), model, metadata)
                picture = f"{draw.__name__.removeprefix('draw_')}.png"
                record(described, Path(directory, described["file"]), {picture: draw(described)})
            with writing_to(output):
                written = write_artifact(output, model, metadata)
    except TrackingError as error:
        state = "was written" if written else "was not written"
        sys.exit(f"error: {error}; the model {state} to {output}")
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


def record(metadata: dict[str, Any], model: Path, pictures: dict[str, Figure]) -> None:
    """Logs the metadata, the model file and the pictures (by file name) to the active run.

    Raises:
        TrackingError: the server is unreachable, or the store cannot be written.
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
