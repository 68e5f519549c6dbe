"""Four steps train, build and score a server of images, and only what has changed runs again."""

import json
import subprocess
import sys

import mlflow

from .artifact import write_artifact
from .gate import refusal
from .parameters import PATTERN, Parameters, parse
from .step import (
    EXPERIMENT,
    STEPS,
    StepError,
    console,
    directory_of,
    end_in_order,
    finished,
    lock,
    say_done,
    shown,
)
from .tracking import TrackingError, tracked


def main() -> None:
    parameters = parse("train", __doc__)
    end_in_order()
    try:
        with lock(parameters.steps / "lock"), tracked(EXPERIMENT, f"{parameters.net} pipeline"):
            pipeline(parameters)
    except (StepError, TrackingError) as error:
        sys.exit(f"error: {error}")


def pipeline(parameters: Parameters) -> None:
    """Runs each step whose inputs have changed in a process of its own, then publishes the model.

    Raises:
        StepError: a step has failed, or the model is not good enough.
    """
    active = mlflow.active_run()
    parent = active.info.run_id if active else ""
    names = sorted({name for step in STEPS.values() for name in step.parameters})
    mlflow.log_params({name: getattr(parameters, name) for name in [*names, "margin"]})
    counted = {"run": 0, "not run again": 0}
    for name in STEPS:
        directory = directory_of(name, parameters)
        how = "run" if finished(directory) is None else "not run again"
        if how == "run":
            start(name, parameters, parent)
        else:
            say_done(name, directory)
        counted[how] += 1
        mlflow.set_tags({f"step.{name}": how, f"step.{name}.directory": directory.name})
        if name == "build" and parameters.server:
            # Who has asked for it reads this line, and starts the server.
            console.print(f"build: {directory} is to be served at {parameters.server}")
    mlflow.log_metric("steps_run", counted["run"])
    publish(parameters)


def start(name: str, parameters: Parameters, parent: str) -> None:
    """Runs a step and waits for its end."""
    command = [sys.executable, "-m", f"train.{name}", *parameters.arguments()]
    process = subprocess.Popen([*command, f"--parent-run={parent}"], cwd=PATTERN)
    try:
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if code:
        raise StepError(f"{name} failed with exit code {code}; the steps before it are kept")


def publish(parameters: Parameters) -> None:
    """Puts the model where a server looks for it, if the gate lets it pass.

    Raises:
        StepError: it does not; what was published before stays.
    """
    built = directory_of("build", parameters)
    scores = json.loads((directory_of("evaluate", parameters) / "scores.json").read_bytes())
    metadata = json.loads((built / "metadata.json").read_bytes())
    metrics = {name: scores[name] for name in ("accuracy", "p50_ms", "p99_ms")}
    mlflow.log_metrics(metrics)
    mlflow.set_tag("model.sha256", metadata["sha256"])
    reason = refusal(scores, len(metadata["labels"]), parameters.margin)
    mlflow.set_tag("published", "no" if reason else "yes")
    if reason:
        raise StepError(f"not published: {reason}")
    model = (built / metadata["file"]).read_bytes()
    write_artifact(parameters.output, model, metadata | {"served_accuracy": metrics["accuracy"]})
    console.print(f"published in {parameters.output}:", shown(metrics))


if __name__ == "__main__":
    main()
