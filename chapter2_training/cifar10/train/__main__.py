"""Trains, builds and scores an image server in four steps, and reruns only what has changed."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow

from .parameters import Parameters, parse
from .pipeline import Began, Epoch, Event, Judged, Made, pipeline
from .step import RESULT, STEPS, Found, StepError, end_in_order, lock, numbers
from .tracking import TrackingError, tracked

EXPERIMENT = "cifar10"


def main() -> None:
    parameters = parse("train", __doc__)
    end_in_order()
    try:
        with (
            lock(parameters.steps / "lock"),
            tracked(EXPERIMENT, f"{parameters.net} pipeline"),
            closing(pipeline(parameters)) as events,
        ):
            record(parameters, events)
    except (StepError, TrackingError) as error:
        sys.exit(f"error: {error}")


def record(parameters: Parameters, events: Iterator[Event]) -> None:
    """Logs the events to the run of the pipeline, and each executed step as a nested run.

    The steps themselves do not import MLflow, because that takes seconds.
    """
    parent = mlflow.active_run()
    experiment = parent.info.experiment_id if parent else None
    names = {name for step in STEPS.values() for name in step.parameters}
    mlflow.log_params(values_of(parameters, [*sorted(names), "margin"]))
    steps_run = 0
    for event in events:
        match event:
            case Began(step):
                mlflow.start_run(experiment_id=experiment, run_name=step, nested=True)
                mlflow.log_params(values_of(parameters, STEPS[step].parameters))
            case Epoch(number, scores):
                mlflow.log_metrics(scores, step=number)
            case Made(step, run, directory):
                if run:
                    record_step(step, directory)
                    mlflow.end_run()
                steps_run += run
                how = "run" if run else "not run again"
                mlflow.set_tags({f"step.{step}": how, f"step.{step}.directory": directory.name})
            case Judged(scores, model_sha256, reason):
                mlflow.log_metrics({**scores, "steps_run": steps_run})
                published = "no" if reason else "yes"
                mlflow.set_tags({"model.sha256": model_sha256, "published": published})


def values_of(parameters: Parameters, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(parameters, name) for name in names}


def record_step(step: str, directory: Path) -> None:
    """Logs the findings, the duration and the artifacts of a step to its run."""
    result = json.loads((directory / RESULT).read_bytes())
    found: Found = result["found"]
    metrics = numbers(found)
    mlflow.log_metrics({**metrics, "seconds": result["seconds"]})
    mlflow.log_params({name: found[name] for name in found.keys() - metrics.keys()})
    mlflow.set_tag("outputs_sha256", result["sha256"])
    for path in (directory / file for file in STEPS[step].artifacts):
        # There is no server.log if the server was started elsewhere.
        if path.exists():
            mlflow.log_artifact(str(path))


if __name__ == "__main__":
    main()
