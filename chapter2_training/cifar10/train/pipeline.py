"""Runs the steps whose inputs have changed, and publishes the model if it passes the gate."""

import json
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .artifact import write_artifact, writing_to
from .gate import rejection
from .parameters import PATTERN, Parameters
from .step import (
    EPOCHS,
    STEPS,
    StepError,
    console,
    directory_of,
    finished,
    partial_of,
    say_done,
    shown,
)

POLL_SECONDS = 0.5


class Began(NamedTuple):
    """A step has started."""

    step: str


class Epoch(NamedTuple):
    """The running step has finished an epoch."""

    number: int
    scores: dict[str, float]


class Made(NamedTuple):
    """A step has finished, or its result already existed (`run` is False)."""

    step: str
    run: bool
    directory: Path


class Judged(NamedTuple):
    """The gate has decided; the model is published unless there is a reason not to."""

    scores: dict[str, float]
    model_sha256: str
    reason: str | None


Event = Began | Epoch | Made | Judged


def pipeline(parameters: Parameters) -> Generator[Event, None, None]:
    """Runs each step whose inputs have changed in its own process, then publishes the model.

    If you stop reading early, close the generator: that ends the process of the running step.

    Raises:
        StepError: a step has failed, or the model is not good enough.
    """
    for name in STEPS:
        directory = directory_of(name, parameters)
        run = finished(directory) is None
        if run:
            yield Began(name)
            yield from epochs_of(name, parameters, directory)
        else:
            say_done(name, directory)
        yield Made(name, run, directory)
        if name == "build" and parameters.server:
            # train_with_docker.py waits for this line and then starts the server.
            console.print(f"build: {directory} is to be served at {parameters.server}")
    yield from publish(parameters)


def epochs_of(name: str, parameters: Parameters, directory: Path) -> Iterator[Epoch]:
    """Runs a step and yields its epochs as they finish.

    Raises:
        StepError: the step has failed.
    """
    command = [sys.executable, "-m", f"train.{name}", *parameters.arguments()]
    process = subprocess.Popen(command, cwd=PATTERN)
    code, seen = None, 0
    try:
        while code is None:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(POLL_SECONDS)
            lines: list[str] = []
            with suppress(FileNotFoundError):
                written = (directory if code == 0 else partial_of(directory)) / EPOCHS
                # The last line may be incomplete.
                lines = written.read_text().split("\n")[:-1]
            for line in lines[seen:]:
                seen += 1
                yield Epoch(seen, json.loads(line))
    finally:
        process.terminate()
        process.wait()
    if code:
        raise StepError(f"{name} failed with exit code {code}; earlier results are kept")


def publish(parameters: Parameters) -> Iterator[Judged]:
    """Publishes the model where a server loads it, if it passes the gate.

    Raises:
        StepError: it does not pass; the model published before stays.
    """
    built = directory_of("build", parameters)
    scores = json.loads((directory_of("evaluate", parameters) / "scores.json").read_bytes())
    metadata = json.loads((built / "metadata.json").read_bytes())
    kept = {name: scores[name] for name in ("accuracy", "p50_ms", "p99_ms")}
    reason = rejection(scores, len(metadata["labels"]), parameters.margin)
    yield Judged(kept, metadata["sha256"], reason)
    if reason:
        raise StepError(f"not published: {reason}")
    model = (built / metadata["file"]).read_bytes()
    with writing_to(parameters.output):
        write_artifact(parameters.output, model, metadata | {"served_accuracy": kept["accuracy"]})
    console.print(f"published in {parameters.output}:", shown(kept))
