"""Records a training as an MLflow run, or explains why it cannot."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException

EMBEDDED = "sqlite:///"
# The default store; MLFLOW_TRACKING_URI overrides it.
STORE = Path(__file__).parents[1] / "tracking" / "mlflow.db"
# MLflow raises these when its server is unreachable or its files cannot be written.
LOST = (MlflowException, OSError)


class TrackingError(Exception):
    """The run cannot be recorded."""


@contextmanager
def tracked(experiment: str, run_name: str) -> Iterator[None]:
    """Wraps the block in an MLflow run, which fails if the block raises an exception.

    Raises:
        TrackingError: the server is unreachable at any point, or the store cannot be opened.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{EMBEDDED}{STORE}"
    # By default MLflow retries an unreachable server for several minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    mlflow.set_tracking_uri(uri)
    with usable(uri):
        mlflow.start_run(experiment_id=experiment_id(uri, experiment), run_name=run_name)
    try:
        yield
    except BaseException as error:
        # The original error matters more than a failure to record it.
        with suppress(*LOST):
            # End nested runs, too.
            while mlflow.active_run():
                mlflow.end_run("FAILED")
        if isinstance(error, MlflowException):
            raise lost(uri, error) from error
        raise
    with reachable(uri):
        mlflow.end_run()


def experiment_id(uri: str, name: str) -> str:
    """Returns the ID of the experiment, creating it if it does not exist."""
    if not uri.startswith(EMBEDDED):
        return str(mlflow.set_experiment(name).experiment_id)
    store = Path(uri.removeprefix(EMBEDDED)).absolute()
    store.parent.mkdir(parents=True, exist_ok=True)
    # Otherwise two concurrent first runs would both create the tables.
    with FileLock(f"{store}.lock"):
        if known := mlflow.get_experiment_by_name(name):
            return str(known.experiment_id)
        return mlflow.create_experiment(name, (store.parent / "artifacts").as_uri())


@contextmanager
def usable(uri: str) -> Iterator[None]:
    """Turns any error, of MLflow or of its database driver, into a TrackingError with advice."""
    try:
        yield
    except Exception as error:
        advice = (
            "make its directory writable, or move a damaged file away"
            if uri.startswith(EMBEDDED)
            else "start the server, or unset MLFLOW_TRACKING_URI to use the embedded store"
        )
        raise TrackingError(
            f"cannot record a run at {uri}: {advice}: {first_line(error)}"
        ) from error


@contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Raises a TrackingError if recording fails in a run that has already started."""
    try:
        yield
    except LOST as error:
        raise lost(uri, error) from error


def lost(uri: str, error: Exception) -> TrackingError:
    return TrackingError(f"cannot finish recording the run at {uri}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Drops the SQL statement and links that SQLAlchemy appends to its errors."""
    return str(error).partition("\n")[0]
