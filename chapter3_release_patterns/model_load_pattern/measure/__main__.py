"""Measures whether one image serves any model, and whether only the released one gets ready."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import NamedTuple, Self

import httpx
import numpy as np
from sklearn.datasets import load_iris

from tools.measure.docker import ask, engine
from tools.measure.results import Results, quick_argument, this_machine
from tools.measure.server import Server, ServerError, interleave, median_and_spread, wait_until
from tools.run.ports import free_port

from ..app.load import MODEL
from ..train.artifact import write_artifact
from .failures import ALL_FAILURES, Failure, failures, release
from .images import digest_with_the_model, network_with_store, serving
from .processes import STORE_DELAY_SECONDS, replica, run_load, run_store

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

HERE = Path(__file__).parents[1]
CLAIM = "One image serves three models, and only the released one is ever ready."
EXPECTED = {
    "models_served": 3,
    "images_of_three_models": 1,
    "failures_refused": 7,
    "predictions_before_ready": 0,
    "answers_wrong_or_missing": 0,
}
QUICK_FAILURES = ("wrong digest",)
ROUNDS = 9
MODELS = ("iris_svc", "iris_logistic", "iris_discriminant")
ROUNDS_WHEN_READY = 20
LARGE_BYTES = 40_000_000
ROWS = load_iris().data.astype(np.float32)
BODY = json.dumps({"data": ROWS.tolist()})
JSON = {"content-type": "application/json"}
# A function that starts a replica with an environment.
Arm = Callable[[dict[str, str]], AbstractContextManager[Server]]


def probabilities_of(artifact: Path) -> np.ndarray:
    """Returns what a model file predicts for all rows of iris, without the server."""
    session = onnxruntime.InferenceSession(artifact / MODEL)
    probabilities: np.ndarray = session.run(["probabilities"], {"X": ROWS})[0]
    return probabilities


# --- callers --------------------------------------------------------------------------------------


def predicts(client: httpx.Client, url: str, expected: np.ndarray) -> bool | None:
    """Tells whether a replica predicts all rows as expected; None if it does not respond."""
    try:
        response = client.post(f"{url}/predict", content=BODY, headers=JSON)
    except httpx.HTTPError:
        return None
    if response.status_code != 200:
        return None
    return bool(np.allclose(response.json()["prediction"], expected, rtol=0, atol=1e-5))


def is_ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


class Callers:
    """Call the running replica and, once it is ready, the new one, as a Kubernetes Service does.

    `early` counts predictions of the new replica before it was ready, `wrong` requests to a ready
    replica with a wrong response or none.
    """

    def __init__(self, new: str, running: str, expected: np.ndarray) -> None:
        self.early = self.wrong = self.rounds_when_ready = 0
        self.over = Event()
        self.thread = Thread(target=self.ask, args=(new, running, expected))

    def ask(self, new: str, running: str, expected: np.ndarray) -> None:
        with httpx.Client(timeout=5) as client:
            # The pause leaves the CPU to the replicas.
            while not self.over.wait(0.01):
                self.wrong += predicts(client, running, expected) is not True
                unready = predicts(client, new, expected)
                if is_ready(client, new):
                    self.rounds_when_ready += 1
                    self.wrong += predicts(client, new, expected) is not True
                else:
                    self.early += unready is not None

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def stop(self) -> None:
        self.over.set()
        self.thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Start(NamedTuple):
    """The outcome of starting a replica under load."""

    early: int
    wrong: int
    # The end of its log, if it exited before it was ready.
    refusal: str


def start_under_load(
    environment: dict[str, str], running: str, expected: np.ndarray, arm: Arm
) -> Start:
    """Starts a replica under load, and calls it a few times if it becomes ready."""
    refusal = ""
    with Callers(url_of(environment), running, expected) as callers:
        try:
            with arm(environment):
                wait_until(
                    lambda: callers.rounds_when_ready >= ROUNDS_WHEN_READY, "the callers' rounds"
                )
                # The callers stop first, so that the shutdown of the replica is not counted.
                callers.stop()
        except ServerError as error:
            refusal = str(error)
    return Start(callers.early, callers.wrong, refusal)


# --- counts ---------------------------------------------------------------------------------------


def environment_for(directory: Path, released: dict[str, str]) -> dict[str, str]:
    """Adds a free port and a separate model directory, as each pod has its own."""
    port = str(free_port())
    return {"MODEL_DIRECTORY": str(directory / port), "PORT": port, **released}


def url_of(environment: dict[str, str]) -> str:
    return f"http://127.0.0.1:{environment['PORT']}"


def serve_models(directory: Path, store: Path, url: str) -> int:
    """Serves each model with the same server, and returns how many responded correctly."""

    def serves(name: str) -> bool:
        expected = probabilities_of(store / name / "1")
        with (
            replica(environment_for(directory, release(store, url, name))) as server,
            httpx.Client() as client,
        ):
            is_named = client.get(f"{server.url}/metadata").json()["name"] == name
            return is_named and predicts(client, server.url, expected) is True

    with ThreadPoolExecutor() as threads:
        return sum(threads.map(serves, MODELS))


def serve_images(store: Path) -> tuple[int, set[str], float]:
    """Serves each model in a container, as `serve_models` does with processes.

    Returns how many responded correctly, the image digests, and the seconds from `docker run` of
    the init step to the first prediction.
    """
    served, digests, seconds = 0, set(), []
    with network_with_store() as network:
        for name in MODELS:
            with serving(name, network, ROWS[0].tolist()) as container:
                found = ask(container.name, ROWS.tolist())
            expected = probabilities_of(store / name / "1")
            served += None not in found and np.allclose(
                np.array(found, np.float32), expected, rtol=0, atol=1e-5
            )
            digests.add(container.image)
            seconds.append(container.start_seconds)
    return served, digests, median_and_spread(seconds).median


def try_arms(
    directory: Path,
    store: Path,
    url: str,
    slow_url: str,
    arms: Mapping[str, Arm],
    names: Sequence[str],
) -> dict[str, dict[str, int]]:
    """Starts a good release from a slow store, then broken ones, with each arm."""
    expected = probabilities_of(store / "iris_svc/1")
    starts: dict[str, list[Start]] = {arm: [] for arm in arms}
    refused = dict.fromkeys(arms, 0)
    broken = failures(store, url)
    good = Failure(release(store, slow_url, "iris_svc"), "")
    with (
        replica(environment_for(directory, release(store, url, "iris_svc"))) as running,
        ThreadPoolExecutor() as threads,
    ):
        for name in ("", *names):
            released, reason = broken[name] if name else good
            # Both arms at once, because nothing is timed here.
            found = {
                arm: threads.submit(
                    start_under_load,
                    environment_for(directory, released),
                    running.url,
                    expected,
                    start,
                )
                for arm, start in arms.items()
            }
            for arm, each in found.items():
                starts[arm].append(each.result())
                refused[arm] += bool(name) and reason in each.result().refusal
    return {
        arm: {
            "failures_refused": refused[arm],
            "predictions_before_ready": sum(start.early for start in found),
            "answers_wrong_or_missing": sum(start.wrong for start in found),
        }
        for arm, found in starts.items()
    }


# --- times ----------------------------------------------------------------------------------------


def load_seconds(environment: dict[str, str]) -> tuple[float, float]:
    """Runs the init step, and returns its duration and that of the fetch within it."""
    began = time.perf_counter()
    loaded = run_load(environment)
    seconds = time.perf_counter() - began
    fetched = re.search(r"in ([0-9.]+) seconds", loaded.stderr)
    if loaded.returncode or not fetched:
        raise SystemExit(f"error: the init step failed: {loaded.stderr}")
    return seconds, float(fetched[1])


def start_seconds(directory: Path, released: dict[str, str]) -> dict[str, float]:
    """Times the init step and then the start of the server."""
    environment = environment_for(directory, released)
    init_step_seconds, fetch_seconds = load_seconds(environment)
    with replica(environment, init_step=False) as server:
        return {
            "start_seconds": init_step_seconds + server.start_seconds,
            "init_step_seconds": init_step_seconds,
            "fetch_seconds": fetch_seconds,
            "server_seconds": server.start_seconds,
        }


def moved_bytes(directory: Path, store: Path, url: str, name: str) -> tuple[int, float]:
    """Loads a model, and returns the bytes that the store has sent and the seconds of the fetch."""
    before = httpx.get(f"{url}/moved").json()
    _, seconds = load_seconds(environment_for(directory, release(store, url, name)))
    return httpx.get(f"{url}/moved").json() - before, seconds - 2 * STORE_DELAY_SECONDS


def add_large_model(store: Path) -> None:
    """Adds a random file of the size of a small network; the init step does not parse it."""
    content = np.random.default_rng(0).bytes(LARGE_BYTES)
    write_artifact(store / "large/1", content, {"name": "large", "version": "1"})


def measure_times(directory: Path, store: Path, url: str, slow_url: str) -> dict[str, float]:
    """Times a start, and measures the bytes that updates of a small and a large model move."""
    add_large_model(store)
    moved, _ = moved_bytes(directory, store, slow_url, "iris_svc")
    moved_of_large, large_seconds = moved_bytes(directory, store, slow_url, "large")
    svc = release(store, url, "iris_svc")
    measured = interleave({"svc": partial(start_seconds, directory, svc)}, ROUNDS)["svc"]
    figures = {
        name: median_and_spread([values[name] for values in measured]).median
        for name in measured[0]
    }
    return figures | {
        "moved_bytes_per_update": moved,
        "moved_ratio_to_40_mb_model": moved_of_large / LARGE_BYTES,
        "fetch_40_mb_seconds": large_seconds,
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    docker_version = None if arguments.quick else engine()
    if not (arguments.quick or docker_version):
        sys.exit("error: this counts images: start Docker, or leave them out with ARGS=--quick")
    # The tests start all failures; a quick run starts one.
    names = QUICK_FAILURES if arguments.quick else ALL_FAILURES
    expected = EXPECTED | {"failures_refused": len(names)}
    with TemporaryDirectory() as temporary:
        directory = Path(temporary)
        store = copytree(HERE / "models", directory / "store")
        carelessly = partial(replica, app="measure.baselines:careless", init_step=False)
        arms: dict[str, Arm] = {"ours": replica, "careless": carelessly}
        with run_store(store) as url, run_store(store, "measure.baselines:slow_store") as slow_url:
            counts, control = try_arms(directory, store, url, slow_url, arms, names).values()
            counts["models_served"] = serve_models(directory, store, url)
            figures = {} if arguments.quick else measure_times(directory, store, url, slow_url)
        if docker_version:
            right, digests, figures["container_start_seconds"] = serve_images(store)
            counts["models_served"] = min(counts["models_served"], right)
            counts["images_of_three_models"] = len(digests)
            control["images_of_three_models"] = len(
                {digest_with_the_model(name, store) for name in MODELS}
            )
    counts = {name: counts[name] for name in expected if name in counts}
    targets: dict[str, tuple[str, float]] = {
        **{name: ("==", count) for name, count in expected.items()},
        "start_seconds": ("<=", 2),
        "moved_ratio_to_40_mb_model": ("<=", 1.001),
    }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets={name: target for name, target in targets.items() if name in counts | figures},
        holds=all(counts[name] == expected[name] for name in counts),
        machine=this_machine() | {"docker": docker_version or "not used"},
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
