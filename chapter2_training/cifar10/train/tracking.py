# Copied from chapter2_training/iris_sklearn_svc/train/tracking.py
"""Records a run of training with MLflow: parameters, metrics, digests, the model and pictures."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException

EMBEDDED = "sqlite:///"
# Where runs are kept unless MLFLOW_TRACKING_URI names a server or another place.
STORE = Path(__file__).parents[1] / "tracking" / "mlflow.db"


class TrackingError(Exception):
    """There is nothing that records the run."""


@contextmanager
def tracked(experiment: str, run_name: str) -> Iterator[None]:
    """Makes what is inside a run of an experiment; an exception inside makes it a failed run.

    Raises:
        TrackingError: the server does not answer, or the store cannot be opened.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{EMBEDDED}{STORE}"
    # MLflow's own patience with a server that does not answer is several minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    mlflow.set_tracking_uri(uri)
    try:
        run = mlflow.start_run(experiment_id=experiment_id(uri, experiment), run_name=run_name)
    except (MlflowException, OSError) as error:
        raise TrackingError(
            f"no run can be recorded at {uri}: start a server there, or unset MLFLOW_TRACKING_URI "
            f"to use the embedded store: {error}"
        ) from error
    with run:
        yield


def experiment_id(uri: str, name: str) -> str:
    """Returns the id of an experiment, which is made if there is none of that name."""
    if not uri.startswith(EMBEDDED):
        return str(mlflow.set_experiment(name).experiment_id)
    store = Path(uri.removeprefix(EMBEDDED)).absolute()
    store.parent.mkdir(parents=True, exist_ok=True)
    # Two first runs at once would both make the tables.
    with FileLock(f"{store}.lock"):
        if known := mlflow.get_experiment_by_name(name):
            return str(known.experiment_id)
        return mlflow.create_experiment(name, (store.parent / "artifacts").as_uri())


def record(metadata: dict[str, Any], model: Path, pictures: dict[str, Figure]) -> None:
    """Adds to the run what `metadata` says of the model, the model's file, and pictures by name."""
    data = {"training_data_sha256": metadata["training_data_sha256"]}
    mlflow.log_params(metadata["parameters"] | data)
    mlflow.log_metrics(metadata["metrics"])
    mlflow.set_tags({f"model.{name}": metadata[name] for name in ("name", "version", "sha256")})
    mlflow.log_artifact(str(model))
    mlflow.log_dict(metadata, "metadata.json")
    for name, figure in pictures.items():
        mlflow.log_figure(figure, name)
