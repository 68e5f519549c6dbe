# Copied from chapter2_training/iris_sklearn_svc/train/tracking.py
"""Makes a training a run of MLflow, and says why where it cannot be recorded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException

EMBEDDED = "sqlite:///"
# Where runs are kept unless MLFLOW_TRACKING_URI names a server or another place.
STORE = Path(__file__).parents[1] / "tracking" / "mlflow.db"
# What MLflow raises where its server has gone or its files cannot be written.
LOST = (MlflowException, OSError)


class TrackingError(Exception):
    """There is nothing that records the run, or it has gone meanwhile."""


@contextmanager
def tracked(experiment: str, run_name: str) -> Iterator[None]:
    """Makes what is inside a run of an experiment; an exception inside makes it a failed run.

    Raises:
        TrackingError: the server does not answer or goes meanwhile, or the store cannot be opened.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{EMBEDDED}{STORE}"
    # MLflow's own patience with a server that does not answer is several minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    mlflow.set_tracking_uri(uri)
    with usable(uri):
        mlflow.start_run(experiment_id=experiment_id(uri, experiment), run_name=run_name)
    try:
        yield
    except BaseException as error:
        # The reason of the failure is what has to be told, also where it cannot be recorded.
        with suppress(*LOST):
            # A run inside of this one has failed with it.
            while mlflow.active_run():
                mlflow.end_run("FAILED")
        if isinstance(error, MlflowException):
            raise lost(uri, error) from error
        raise
    with reachable(uri):
        mlflow.end_run()


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


@contextmanager
def usable(uri: str) -> Iterator[None]:
    """Says why nothing can be recorded, whichever library finds it out: a database has its own."""
    try:
        yield
    except Exception as error:
        advice = (
            "move that file away if it is damaged"
            if uri.startswith(EMBEDDED)
            else "start a server there, or unset MLFLOW_TRACKING_URI to use the embedded store"
        )
        raise TrackingError(
            f"no run can be recorded at {uri}: {advice}: {first_line(error)}"
        ) from error


@contextmanager
def reachable(uri: str) -> Iterator[None]:
    """Says why a run that has begun is not recorded to its end."""
    try:
        yield
    except LOST as error:
        raise lost(uri, error) from error


def lost(uri: str, error: Exception) -> TrackingError:
    return TrackingError(f"the run is not recorded to its end at {uri}: {first_line(error)}")


def first_line(error: Exception) -> str:
    """Returns what happened, without the statements and links that a database adds to it."""
    return str(error).partition("\n")[0]
