"""Measures whether a version always means one model and one image, and what an update costs."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
from rich.console import Console
from sklearn.datasets import load_iris

from tools.measure.docker import ask, engine, wait_until_answered
from tools.measure.results import Results, quick_argument, this_machine
from tools.measure.server import median_and_spread
from tools.measure.servers import run_uvicorn
from tools.run.ports import free_port

from ..train.artifact import write_artifact
from ..train.model import train
from ..train.release import ReleaseError, write_once
from .images import (
    MODEL_LAYER,
    PLAIN_MODEL_LAYER,
    Builds,
    bytes_to_push,
    count_wrong_or_missing,
    running,
    three_builds,
)

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

HERE = Path(__file__).parents[1]
CLAIM = (
    "Building the same model twice gives the same image, another model gives another image, and "
    "after a rollback every prediction is bit-identical to before."
)
CLAIM_WITHOUT_IMAGES = (
    "A version never changes its model, and after a rollback every prediction is bit-identical."
)
# The versions that are built; the higher penalty gives the second one a different model.
PENALTIES = {"1.0.0": 1.0, "2.0.0": 10.0}
ROWS: list[list[float]] = load_iris().data.astype(np.float32).tolist()
TARGETS: dict[str, tuple[str, float]] = {
    "rows_that_differ_after_rollback": ("==", 0),
    "versions_replaced": ("==", 0),
    "images_of_two_models_in_three_builds": ("==", 2),
    "model_layers_of_two_models_in_three_builds": ("==", 2),
    "layers_pushed_for_a_model_update": ("==", 1),
    "rows_wrong_or_missing_offline": ("==", 0),
    "bytes_pushed_for_a_model_update": ("<=", 10_000),
    "container_start_seconds": ("<=", 5),
}


def count_replaced(write: Callable[..., object], models: Path) -> int:
    """Tries to overwrite each version with another model; returns how many have changed."""
    replaced = 0
    for version, penalty in PENALTIES.items():
        before = (models / version / "model.onnx").read_bytes()
        try:
            write(models / version, *train(version=version, penalty=11 - penalty))
        except ReleaseError:
            continue
        finally:
            replaced += (models / version / "model.onnx").read_bytes() != before
    return replaced


def overwrite(latest: Path, models: Path) -> Iterator[Path]:
    """Yields one directory three times: with the first version, the second, and unchanged.

    A mutable tag such as `latest` does the same: the earlier version has no name to roll back to.
    """
    for version in PENALTIES:
        shutil.copytree(models / version, latest, dirs_exist_ok=True)
        yield latest
    yield latest


def roll(directories: Iterable[Path]) -> tuple[int, list[float]]:
    """Serves one directory after the other on one port.

    Returns how many rows the first and the last server predict differently, and the seconds without
    a server at each change.
    """
    port = free_port()
    responses: list[list[list[float]]] = []
    changed: list[tuple[float, float]] = []
    for directory in directories:
        env = {"MODEL_DIRECTORY": str(directory)}
        with run_uvicorn("app.main:app", cwd=HERE, env=env, port=port) as started:
            ready = time.perf_counter()
            response = httpx.post(f"{started.url}/predict", json={"data": ROWS}, timeout=10)
            responses.append(response.raise_for_status().json()["prediction"])
            # The server accepts no connections from here on.
            changed.append((ready, time.perf_counter()))
    gaps = [ready - stopped for (_, stopped), (ready, _) in pairwise(changed)]
    return sum(a != b for a, b in zip(responses[0], responses[-1], strict=True)), gaps


def probabilities_of(directory: Path) -> np.ndarray:
    """Returns what a model file predicts for all rows, without the server."""
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    probabilities: np.ndarray = session.run(["probabilities"], {"X": np.array(ROWS, np.float32)})[0]
    return probabilities


def count_images(builds: Builds, model_layer: int) -> dict[str, int]:
    """Counts the different images and layers of three builds of two models."""
    images = builds.first, builds.again, builds.update
    pushed = set(builds.update.layers) - set(builds.again.layers)
    return {
        "images_of_two_models_in_three_builds": len({image.digest for image in images}),
        "model_layers_of_two_models_in_three_builds": len(
            {image.layers[model_layer] for image in images}
        ),
        "layers_pushed_for_a_model_update": len(pushed),
    }


def measure_images(
    models: Path,
    ours: Builds,
    plain: Builds,
    counts: dict[str, int],
    control: dict[str, int],
    figures: dict[str, float],
) -> None:
    """Adds what needs Docker: images, the bytes pushed for an update, and start times."""
    expected = probabilities_of(models / "1.0.0")
    container_seconds = []
    wrong_or_missing = 0
    for _ in range(3):
        began = time.perf_counter()
        with running(ours.first) as container:
            wait_until_answered(container, ROWS[0])
            container_seconds.append(time.perf_counter() - began)
            wrong_or_missing += count_wrong_or_missing(ask(container, ROWS), expected)
    counts |= count_images(ours, MODEL_LAYER)
    counts["rows_wrong_or_missing_offline"] = wrong_or_missing
    control |= count_images(plain, PLAIN_MODEL_LAYER)
    figures |= {
        "bytes_pushed_for_a_model_update": bytes_to_push(ours.update, ours.again),
        "bytes_pushed_with_the_model_first": bytes_to_push(plain.update, plain.again),
        "build_seconds_of_a_model_update": ours.update_seconds,
        "container_start_seconds": median_and_spread(container_seconds).median,
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    versions = [*PENALTIES] * (1 if arguments.quick else 4) + ["1.0.0"]
    docker_version = None if arguments.quick else engine()
    if not (arguments.quick or docker_version):
        sys.exit(
            "error: no Docker engine answers, and the claim is about images: start Docker, "
            "or use --quick to measure without images"
        )
    with TemporaryDirectory() as directory:
        models, mutable = Path(directory) / "models", Path(directory) / "mutable"
        for version, penalty in PENALTIES.items():
            write_once(models / version, *train(version=version, penalty=penalty))
            write_artifact(mutable / version, *train(version=version, penalty=penalty))
        differing, gaps = roll(models / version for version in versions)
        differing_in_place, _ = roll(overwrite(mutable / "latest", models))
        counts = {
            "rows_that_differ_after_rollback": differing,
            "versions_replaced": count_replaced(write_once, models),
        }
        control = {
            "rows_that_differ_after_rollback": differing_in_place,
            "versions_replaced": count_replaced(write_artifact, mutable),
        }
        figures = {
            "rollout_gap_seconds": median_and_spread(gaps).median,
            "bytes_of_the_model_alone": sum(
                path.stat().st_size for path in (models / "2.0.0").iterdir()
            ),
        }
        if docker_version:
            with three_builds(models) as ours, three_builds(models, plain=True) as plain:
                measure_images(models, ours, plain, counts, control, figures)
        else:
            Console(stderr=True).print("With --quick, no images are built or measured.")
    targets = {name: target for name, target in TARGETS.items() if name in counts | figures}
    results = Results(
        pattern=HERE.name,
        claim=CLAIM if docker_version else CLAIM_WITHOUT_IMAGES,
        counts=counts,
        control=control,
        figures=figures,
        targets=targets,
        holds=all(counts[name] == TARGETS[name][1] for name in counts),
        machine=this_machine() | {"docker": docker_version or "not used"},
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
