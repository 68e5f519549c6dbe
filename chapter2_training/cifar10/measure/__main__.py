"""Measures the claim: only changed steps run again, and no model at chance level is published."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tools.measure.results import Results, quick_argument
from tools.measure.server import interleave, median_and_spread
from tools.read.patterns import ROOT

from ..train.cifar import RECORD
from ..train.onnx_graph import export
from ..train.parameters import PATTERN

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

CLAIM = (
    "A step runs only when its inputs have changed, and a model that is no better than chance is "
    "not published."
)
# Which steps run does not depend on the amount of data.
SMALL = ("--images=100", "--epochs=6")
# ImageNet's statistics on the scale of 0 to 255.
IMAGENET = {"0.mean": [123.675, 116.28, 103.53], "0.deviation": [58.395, 57.12, 57.375]}
SPEED_ROUNDS = 9


class Pipeline:
    """A pipeline with its own directory for all results."""

    def __init__(self, state: Path, options: Sequence[str], *, tracked: bool = False) -> None:
        self.state = state
        options = [f"--output={state / 'models'}", *options]
        self.command = [sys.executable, "-m", f"{__package__}.untracked", *options]
        self.directory = ROOT
        if tracked:
            self.command, self.directory = [sys.executable, "-m", "train", *options], PATTERN
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{state / 'tracking/mlflow.db'}"}
        self.environment = os.environ | store

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts the pipeline; these arguments override the options."""
        return subprocess.Popen(
            [*self.command, *arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, int, str]:
        """Runs the pipeline; returns its exit code, the number of steps run, and its output."""
        with self.start(*arguments) as process:
            output, _ = process.communicate()
        return process.returncode, len(re.findall(r"^\w+: done in", output, re.MULTILINE)), output

    def steps(self, *arguments: str) -> int:
        """Runs the pipeline, which must succeed, and returns the number of steps run."""
        code, steps, output = self.run(*arguments)
        if code:
            raise SystemExit(f"error: the pipeline ended with exit code {code}:\n{output}")
        return steps

    def kill_in_fit(self, *arguments: str) -> None:
        """Starts the pipeline and kills all its processes after the first epoch of `fit`."""
        with self.start(*arguments) as process:
            for line in process.stdout or ():
                if "fit: epoch 1 of" in line:
                    os.killpg(process.pid, signal.SIGKILL)

    def result(self, step: str) -> Path:
        """Returns the newest result of a step."""
        found = (path for path in (self.state / "data").glob(f"{step}-*") if path.is_dir())
        return max(found, key=lambda path: path.stat().st_mtime)

    def published(self) -> str:
        """Returns the digest of the published model."""
        content = (self.state / "models/metadata.json").read_bytes()
        digest: str = json.loads(content)["sha256"]
        return digest


def count_after_a_kill(pipeline: Pipeline) -> tuple[int, int]:
    """Counts the steps run after a kill in the first `fit`, and then with nothing changed."""
    pipeline.kill_in_fit()
    return pipeline.steps(), pipeline.steps()


def count_without_an_epoch(pipeline: Pipeline) -> tuple[int, int, int]:
    """Trains no epoch; counts the steps, and the models published with and without the gate."""
    before = pipeline.published()
    _, steps, _ = pipeline.run("--epochs=0")
    published = int(pipeline.published() != before)
    pipeline.run("--epochs=0", "--margin=-0.9")
    return steps, published, int(pipeline.published() != before)


def unlike_training(pipeline: Pipeline, model: bytes) -> int:
    """Counts the test images for which the model and the trained network disagree."""
    rows = np.fromfile(pipeline.result("preprocess") / "test.bin", np.uint8).reshape(-1, RECORD)
    session = onnxruntime.InferenceSession(model)
    (predicted,) = session.run(["probabilities"], {"X": rows[:, 1:].astype(np.float32)})
    return int((predicted.argmax(1) != np.load(pipeline.result("fit") / "predicted.npy")).sum())


def with_statistics_of_imagenet(pipeline: Pipeline, net: str) -> bytes:
    """Exports the trained network with ImageNet's normalisation instead of its own."""
    others = {
        name: np.array(values, np.float32).reshape(1, 3, 1, 1) for name, values in IMAGENET.items()
    }
    with np.load(pipeline.result("fit") / "weights.npz") as weights:
        return export(net, {**weights, **others})


def measure_times(directory: Path) -> dict[str, float]:
    """Times the training with its defaults, and times two networks."""
    # Importing PyTorch takes seconds, and a quick run does not need it.
    from .speed import images_per_second

    whole = Pipeline(directory, (), tracked=True)
    began = perf_counter()
    whole.steps()
    trained = perf_counter()
    whole.steps()
    unchanged_seconds = perf_counter() - trained
    scores: dict[str, Any] = json.loads((whole.result("evaluate") / "scores.json").read_bytes())
    speeds = interleave(
        {net: partial(images_per_second, net) for net in ("simple", "vgg11")}, SPEED_ROUNDS
    )
    return {
        "accuracy": scores["accuracy"],
        "train_seconds": trained - began,
        "unchanged_seconds": unchanged_seconds,
        "server_p50_ms": scores["p50_ms"],
        "server_images_per_second": scores["images_per_second"],
        **{
            f"{net}_learns_images_per_second": median_and_spread(values).median
            for net, values in speeds.items()
        },
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with ThreadPoolExecutor() as threads:
            killed = threads.submit(count_after_a_kill, Pipeline(directory / "killed", SMALL))
            small = Pipeline(directory / "small", SMALL)
            first = small.steps()
            model = (small.result("build") / "model.onnx").read_bytes()
            unlike = unlike_training(small, model)
            unlike_imagenet = unlike_training(small, with_statistics_of_imagenet(small, "simple"))
            changed, published, published_without_gate = count_without_an_epoch(small)
            resumed, unchanged = killed.result()
        figures, bounds = {}, {}
        if not arguments.quick:
            figures = measure_times(directory / "whole")
            bounds = {"accuracy": (">=", 0.9), "train_seconds": ("<=", 120)}
    expected = {
        "steps_first": 4,
        "steps_unchanged": 0,
        "steps_after_a_parameter_of_fit": 3,
        "steps_after_a_kill_in_fit": 3,
        "published_at_chance": 0,
        "predictions_unlike_training": 0,
    }
    counts = {
        "steps_first": first,
        "steps_unchanged": unchanged,
        "steps_after_a_parameter_of_fit": changed,
        "steps_after_a_kill_in_fit": resumed,
        "published_at_chance": published,
        "predictions_unlike_training": unlike,
    }
    results = Results(
        pattern=PATTERN.name,
        claim=CLAIM,
        counts=counts,
        # For a pipeline without caching, every run is like the first one.
        control={
            "steps_unchanged": first,
            "steps_after_a_parameter_of_fit": first,
            "steps_after_a_kill_in_fit": first,
            "published_at_chance": published_without_gate,
            "predictions_unlike_training": unlike_imagenet,
        },
        figures=figures,
        targets={**{name: ("==", count) for name, count in expected.items()}, **bounds},
        holds=counts == expected,
    )
    return results.finish(arguments, PATTERN)


if __name__ == "__main__":
    sys.exit(main())
