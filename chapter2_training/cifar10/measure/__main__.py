"""Measures the claim: only what has changed runs again, and what is at chance is not published."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
import torch

from tools.measure.results import Results, quick_argument
from tools.measure.server import interleave, median_and_spread

from ..train.cifar import RECORD
from ..train.curves import draw_curves
from ..train.learning import make_deterministic
from ..train.nets import Standardise, make_net
from ..train.onnx_graph import export
from ..train.parameters import PATTERN

CLAIM = (
    "A step runs only when its inputs have changed, and no model that is not better than chance "
    "is published."
)
SMALL = ("--images=300", "--epochs=4")
# Parameters of `fit`.
ANOTHER = "--epochs=5"
KILLED = "--learning-rate=0.002"
# ImageNet's statistics, as values from 0 to 255.
IMAGENET = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


class Pipeline:
    """A pipeline with a directory of its own for all that it makes."""

    def __init__(self, state: Path, options: Sequence[str]) -> None:
        self.state = state
        self.options = options
        self.environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": f"sqlite:///{state / 'tracking/mlflow.db'}",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts it; arguments that come later count."""
        output = f"--output={self.state / 'models'}"
        return subprocess.Popen(
            [sys.executable, "-m", "train", output, *self.options, *arguments],
            cwd=PATTERN,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str) -> tuple[int, int, str]:
        """Runs it to its end; returns its exit code, the number of steps run, and its output."""
        with self.start(*arguments) as process:
            said, _ = process.communicate()
        return process.returncode, len(re.findall(r"^\w+: done in", said, re.MULTILINE)), said

    def steps(self, *arguments: str) -> int:
        """Returns how many steps are run; that it fails is an error."""
        code, steps, said = self.run(*arguments)
        if code:
            raise SystemExit(f"error: the pipeline ended with exit code {code}:\n{said}")
        return steps

    def kill_in_fit(self, *arguments: str) -> None:
        """Starts it, and kills it with all its processes after the first epoch of `fit`."""
        with self.start(*arguments) as process:
            for line in process.stdout or ():
                if "fit: epoch 1 of" in line:
                    os.killpg(process.pid, signal.SIGKILL)

    def forget(self) -> None:
        """Takes away what the steps have kept, as a pipeline without it would have to begin."""
        shutil.rmtree(self.state / "data")

    def made(self, step: str) -> Path:
        """Returns what a step made last."""
        found = (path for path in (self.state / "data").glob(f"{step}-*") if path.is_dir())
        return max(found, key=lambda path: path.stat().st_mtime)

    def published(self) -> str:
        """Returns the digest of the model that a server would load."""
        content = (self.state / "models/metadata.json").read_bytes()
        digest: str = json.loads(content)["sha256"]
        return digest


def unlike_training(pipeline: Pipeline, session: onnxruntime.InferenceSession) -> int:
    """Returns of how many test images a model says something else than the network it is from."""
    rows = np.fromfile(pipeline.made("preprocess") / "test.bin", np.uint8).reshape(-1, RECORD)
    (answer,) = session.run(["probabilities"], {"X": rows[:, 1:].astype(np.float32)})
    return int((answer.argmax(1) != np.load(pipeline.made("fit") / "predicted.npy")).sum())


def with_statistics_of_imagenet(pipeline: Pipeline, net: str) -> onnxruntime.InferenceSession:
    """Returns the trained network behind another normalisation than it was trained with."""
    statistics = json.loads((pipeline.made("preprocess") / "statistics.json").read_bytes())
    trained = make_net(net, statistics["mean"], statistics["deviation"])
    weights = torch.load(pipeline.made("fit") / "weights.pt", weights_only=True)
    trained.load_state_dict(weights)
    trained[0] = Standardise(*IMAGENET)
    return onnxruntime.InferenceSession(export(trained.eval()))


def images_per_second(net: str) -> float:
    """Returns how many images a network of this kind learns from in a second."""
    make_deterministic(1)
    learner = make_net(net, [128.0] * 3, [64.0] * 3).train()
    optimizer = torch.optim.Adam(learner.parameters())
    rows, labels = torch.rand(64, RECORD - 1) * 255, torch.arange(64) % 10
    began = perf_counter()
    optimizer.zero_grad()
    torch.autograd.backward(torch.nn.functional.cross_entropy(learner(rows), labels))
    optimizer.step()
    return 64 / (perf_counter() - began)


def main() -> int:
    arguments = quick_argument(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        whole = Pipeline(Path(directory, "whole"), SMALL if arguments.quick else ())
        began = perf_counter()
        first = whole.steps()
        train_seconds = perf_counter() - began
        served = onnxruntime.InferenceSession(whole.made("build") / "model.onnx")
        unlike = unlike_training(whole, served)
        unlike_imagenet = unlike_training(whole, with_statistics_of_imagenet(whole, "simple"))
        scores = json.loads((whole.made("evaluate") / "scores.json").read_bytes())
        if output := arguments.directory(PATTERN):
            output.mkdir(parents=True, exist_ok=True)
            history = json.loads((whole.made("fit") / "history.json").read_bytes())
            draw_curves(history, "simple").savefig(output / "plot.png")
        began = perf_counter()
        unchanged = whole.steps()
        unchanged_seconds = perf_counter() - began

        ours = whole
        if not arguments.quick:
            # Which steps run does not depend on how much they have to do.
            ours = Pipeline(Path(directory, "ours"), SMALL)
            ours.steps()
        changed = ours.steps(ANOTHER)
        ours.kill_in_fit(KILLED)
        killed = ours.steps(KILLED)

        before = ours.published()
        ours.run("--epochs=0")
        published = int(ours.published() != before)
        ours.run("--epochs=0", "--margin=-0.9")
        published_without_gate = int(ours.published() != before)

        # Without what the steps have kept, each time is the first one.
        ours.forget()
        unchanged_forgotten = ours.steps()
        ours.forget()
        changed_forgotten = ours.steps(ANOTHER)
        ours.kill_in_fit(KILLED)
        ours.forget()
        killed_forgotten = ours.steps(KILLED)
    speeds = interleave(
        {
            "simple": lambda: images_per_second("simple"),
            "vgg11": lambda: images_per_second("vgg11"),
        },
        2 if arguments.quick else 9,
    )
    expected = {
        "steps_first": 4,
        "steps_unchanged": 0,
        "steps_after_a_parameter_of_fit": 3,
        "steps_after_a_kill_in_fit": 3,
        "published_at_chance": 0,
        "predictions_unlike_training": 0,
    }
    counts = dict(
        zip(expected, (first, unchanged, changed, killed, published, unlike), strict=True)
    )
    results = Results(
        pattern=PATTERN.name,
        claim=CLAIM,
        counts=counts,
        control={
            "steps_unchanged": unchanged_forgotten,
            "steps_after_a_parameter_of_fit": changed_forgotten,
            "steps_after_a_kill_in_fit": killed_forgotten,
            "published_at_chance": published_without_gate,
            "predictions_unlike_training": unlike_imagenet,
        },
        figures={
            "accuracy": scores["accuracy"],
            "train_seconds": train_seconds,
            "unchanged_seconds": unchanged_seconds,
            "server_p50_ms": scores["p50_ms"],
            "server_images_per_second": scores["images_per_second"],
            "simple_learns_images_per_second": median_and_spread(speeds["simple"]).median,
            "vgg11_learns_images_per_second": median_and_spread(speeds["vgg11"]).median,
        },
        targets={
            **{name: ("==", count) for name, count in expected.items()},
            "accuracy": (">=", 0.9),
            "train_seconds": ("<=", 120),
        },
        holds=counts == expected,
    )
    return results.finish(arguments, PATTERN)


if __name__ == "__main__":
    sys.exit(main())
