"""Measures the claim: a model makes an image and an image has a model, and what a new one costs."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np
from rich.console import Console
from sklearn.datasets import load_iris

from tools.results import Results, quick_argument, this_machine
from tools.server import free_port, median_and_spread, serve

from .images import Image, ask, built, bytes_to_push, context, engine, running, wait_until_ready
from .train.artifact import write_artifact
from .train.model import train
from .train.release import ReleaseError, write_once

HERE = Path(__file__).parent
CLAIM = (
    "A model built twice gives the same image and another model another one, and a rollback "
    "answers every row as before, to the bit."
)
# The versions that are built; that an error costs more is what makes the second another model.
PENALTIES = {"1.0.0": 1.0, "2.0.0": 10.0}
ROWS: list[list[float]] = load_iris().data.astype(np.float32).tolist()
TARGETS: dict[str, tuple[str, float]] = {
    "rows_that_differ_after_rollback": ("==", 0),
    "versions_replaced": ("==", 0),
    "images_of_two_models_in_three_builds": ("==", 2),
    "model_layers_of_two_models_in_three_builds": ("==", 2),
    "layers_pushed_for_a_model_update": ("==", 1),
    "rows_unanswered_offline": ("==", 0),
    "bytes_pushed_for_a_model_update": ("<=", 10_000),
    "container_start_seconds": ("<=", 5),
}


def count_replaced(write: Callable[..., object], models: Path) -> int:
    """Returns how many versions hold another model after each was written with the other's."""
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
    """Gives one directory three times: with a version, with the next, and as it is then.

    So does a tag such as `latest`: what it named before has no name to roll back to.
    """
    for version in PENALTIES:
        shutil.copytree(models / version, latest, dirs_exist_ok=True)
        yield latest
    yield latest


def roll(directories: Iterable[Path]) -> tuple[int, list[float]]:
    """Serves one directory after the other, on one port.

    Returns how many rows the first and the last one answer differently, and the seconds of each
    change in which nobody answered.
    """
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)]
    answers: list[list[list[float]]] = []
    changed: list[tuple[float, float]] = []
    for directory in directories:
        with serve(
            [*command, "--loop", "uvloop", "--http", "httptools", "--no-access-log"],
            cwd=HERE,
            env={"MODEL_DIRECTORY": str(directory)},
            ready_url=f"http://127.0.0.1:{port}/ready",
            port=port,
        ) as started:
            ready = time.perf_counter()
            answer = httpx.post(f"{started.url}/predict", json={"data": ROWS}, timeout=10)
            answers.append(answer.raise_for_status().json()["prediction"])
            # From here on it takes no new connection.
            changed.append((ready, time.perf_counter()))
    gaps = [ready - stopped for (_, stopped), (ready, _) in pairwise(changed)]
    return sum(a != b for a, b in zip(answers[0], answers[-1], strict=True)), gaps


def count_distinct(images: list[Image], layer: int) -> tuple[int, int]:
    """Returns how many images there are, and how many layers at the place of the model."""
    return len({image.digest for image in images}), len({image.layers[layer] for image in images})


def measure_images(
    models: Path, counts: dict[str, int], control: dict[str, int], figures: dict[str, float]
) -> None:
    """Adds what needs an engine: the images, what of them is pushed, and how they start."""
    digests = {
        version: json.loads((models / version / "metadata.json").read_bytes())["sha256"]
        for version in PENALTIES
    }
    with ExitStack() as stack:
        directory = stack.enter_context(context(models))

        def build(version: str, plain: bool, cached: bool) -> Image:
            image = built(directory, version, digests[version], plain=plain, cached=cached)
            return stack.enter_context(image)

        # Without the cache, as on two machines.
        ours = [build("1.0.0", False, False), build("1.0.0", False, False)]
        plain = [build("1.0.0", True, False), build("1.0.0", True, False)]
        # With it, as a team whose model is new and whose server is not.
        began = time.perf_counter()
        ours.append(build("2.0.0", False, True))
        build_seconds = time.perf_counter() - began
        plain.append(build("2.0.0", True, True))
        container_seconds = []
        for _ in range(3):
            began = time.perf_counter()
            with running(ours[0]) as container:
                wait_until_ready(container, ROWS[0])
                container_seconds.append(time.perf_counter() - began)
                unanswered = len(ROWS) - len(ask(container, ROWS))
        # In the plain image only the model's place is another one, below code and packages.
        shared = sum(a == b for a, b in zip(ours[0].layers, plain[0].layers, strict=False))
        for found, images, layer in ((counts, ours, -1), (control, plain, shared)):
            distinct = count_distinct(images, layer)
            found["images_of_two_models_in_three_builds"] = distinct[0]
            found["model_layers_of_two_models_in_three_builds"] = distinct[1]
            pushed = set(images[2].layers) - set(images[1].layers)
            found["layers_pushed_for_a_model_update"] = len(pushed)
        counts["rows_unanswered_offline"] = unanswered
        figures |= {
            "bytes_pushed_for_a_model_update": bytes_to_push(ours[2], ours[1]),
            "bytes_pushed_with_the_model_first": bytes_to_push(plain[2], plain[1]),
            "build_seconds_of_a_model_update": build_seconds,
            "container_start_seconds": median_and_spread(container_seconds).median,
        }


def main() -> int:
    arguments = quick_argument(__doc__)
    versions = [*PENALTIES] * (1 if arguments.quick else 4) + ["1.0.0"]
    docker_version = None if arguments.quick else engine()
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
            measure_images(models, counts, control, figures)
        else:
            Console(stderr=True).print("Without Docker, or with --quick, no image is measured.")
    targets = {name: target for name, target in TARGETS.items() if name in counts | figures}
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
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
