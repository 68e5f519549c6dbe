"""Measures the claim: one image serves any model, and none but the released one is ever ready."""

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import NamedTuple, Self

import httpx
import numpy as np
import onnxruntime
from sklearn.datasets import load_iris

from tools.measure.docker import ask, engine
from tools.measure.results import Results, quick_argument, this_machine
from tools.measure.server import (
    Server,
    ServerError,
    free_port,
    interleave,
    median_and_spread,
    wait_until,
)

from ..app.load import MODEL
from ..train.artifact import write_artifact
from .baselines import STORE_DELAY_SECONDS
from .failures import ALL_FAILURES, UNREACHABLE, Failure, failures, release
from .images import digest_with_the_model, network_with_store, serving
from .processes import replica, run_load, run_store

HERE = Path(__file__).parents[1]
CLAIM = "One image serves three models, and only the released one is ever ready."
EXPECTED = {
    "models_served": 3,
    "images_of_three_models": 1,
    "failures_refused": 7,
    "predictions_before_ready": 0,
    "answers_wrong_or_missing": 0,
}
QUICK_FAILURES = ("wrong digest", UNREACHABLE)
ROUNDS = 9
MODELS = ("iris_svc", "iris_logistic", "iris_discriminant")
ROUNDS_WHEN_READY = 20
LARGE_BYTES = 40_000_000
ROWS = load_iris().data.astype(np.float32)
BODY = json.dumps({"data": ROWS.tolist()})
JSON = {"content-type": "application/json"}
# Starts a replica with this environment.
Arm = Callable[[dict[str, str]], AbstractContextManager[Server]]


def probabilities_of(artifact: Path) -> np.ndarray:
    """Returns what a model file itself predicts for all rows of iris."""
    session = onnxruntime.InferenceSession(artifact / MODEL)
    probabilities: np.ndarray = session.run(["probabilities"], {"X": ROWS})[0]
    return probabilities


# --- who asks -------------------------------------------------------------------------------------


def answers(client: httpx.Client, url: str, expected: np.ndarray) -> bool | None:
    """Tells whether a replica answers all rows as expected; None where it answers nothing."""
    try:
        answer = client.post(f"{url}/predict", content=BODY, headers=JSON)
    except httpx.HTTPError:
        return None
    if answer.status_code != 200:
        return None
    return bool(np.allclose(answer.json()["prediction"], expected, rtol=0, atol=1e-5))


def is_ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


class Callers:
    """Ask the running replica and the new one, the new one as soon as it is ready.

    That is what a Kubernetes Service does. `early` counts predictions of the new replica before it
    was ready, `wrong` the requests that a ready replica answered wrongly or not at all.
    """

    def __init__(self, new: str, running: str, expected: np.ndarray) -> None:
        self.early = self.wrong = self.rounds_when_ready = 0
        self.over = Event()
        self.thread = Thread(target=self.ask, args=(new, running, expected))

    def ask(self, new: str, running: str, expected: np.ndarray) -> None:
        with httpx.Client(timeout=5) as client:
            # Often, and without taking a core from those who are asked.
            while not self.over.wait(0.01):
                self.wrong += answers(client, running, expected) is not True
                unasked = answers(client, new, expected)
                if is_ready(client, new):
                    self.rounds_when_ready += 1
                    self.wrong += answers(client, new, expected) is not True
                else:
                    self.early += unasked is not None

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def stop(self) -> None:
        self.over.set()
        self.thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Start(NamedTuple):
    """What became of a replica that was started while callers asked."""

    early: int
    wrong: int
    # The end of its log, if it ended before it was ready.
    refusal: str


def start_under_load(
    environment: dict[str, str], running: str, expected: np.ndarray, arm: Arm
) -> Start:
    """Starts a replica while callers ask, and has it asked a few times if it becomes ready."""
    refusal = ""
    with Callers(url_of(environment), running, expected) as callers:
        try:
            with arm(environment):
                wait_until(
                    lambda: callers.rounds_when_ready >= ROUNDS_WHEN_READY, "the callers' rounds"
                )
                # Before the replica stops, which is not what is counted here.
                callers.stop()
        except ServerError as error:
            refusal = str(error)
    return Start(callers.early, callers.wrong, refusal)


# --- what is counted ------------------------------------------------------------------------------


def environment_for(directory: Path, told: dict[str, str]) -> dict[str, str]:
    """Adds a free port, and a model directory of the replica's own, as each pod has one."""
    port = str(free_port())
    return {"MODEL_DIRECTORY": str(directory / port), "PORT": port, **told}


def url_of(environment: dict[str, str]) -> str:
    return f"http://127.0.0.1:{environment['PORT']}"


def serve_models(directory: Path, store: Path, url: str) -> int:
    """Serves each model in turn with the same server, and returns how many were right."""
    served = 0
    for name in MODELS:
        expected = probabilities_of(store / name / "1")
        with (
            replica(environment_for(directory, release(store, url, name))) as server,
            httpx.Client() as client,
        ):
            is_named = client.get(f"{server.url}/metadata").json()["name"] == name
            served += is_named and answers(client, server.url, expected) is True
    return served


def serve_images(store: Path) -> tuple[int, set[str], float]:
    """Serves each model in turn with containers, as `serve_models` does with processes.

    Returns how many were right, the digests of the images, and the seconds from `docker run` of the
    init step to the first answer.
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
    directory: Path, store: Path, arms: Mapping[str, Arm], names: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Starts a good release from a slow store, then some that must not be served, with each arm."""
    expected = probabilities_of(store / "iris_svc/1")
    starts: dict[str, list[Start]] = {arm: [] for arm in arms}
    refused = dict.fromkeys(arms, 0)
    with ExitStack() as stack:
        far_url = stack.enter_context(run_store(store, "measure.baselines:far_store"))
        near = stack.enter_context(ExitStack())
        near_url = near.enter_context(run_store(store))
        svc = release(store, near_url, "iris_svc")
        running = stack.enter_context(replica(environment_for(directory, svc))).url
        made = failures(store, near_url)
        good = Failure(release(store, far_url, "iris_svc"), "")
        for name in ("", *names):
            released, reason = made[name] if name else good
            if name == UNREACHABLE:
                near.close()
            for arm, start in arms.items():
                told = environment_for(directory, released)
                found = start_under_load(told, running, expected, start)
                starts[arm].append(found)
                refused[arm] += bool(name) and reason in found.refusal
    return {
        arm: {
            "failures_refused": refused[arm],
            "predictions_before_ready": sum(start.early for start in found),
            "answers_wrong_or_missing": sum(start.wrong for start in found),
        }
        for arm, found in starts.items()
    }


# --- what is timed --------------------------------------------------------------------------------


def load_seconds(environment: dict[str, str]) -> tuple[float, float]:
    """Runs the init step, and returns how long it took, and its fetching alone."""
    began = time.perf_counter()
    loaded = run_load(environment)
    seconds = time.perf_counter() - began
    fetched = re.search(r"in ([0-9.]+) seconds", loaded.stderr)
    if loaded.returncode or not fetched:
        raise SystemExit(f"error: the init step failed: {loaded.stderr}")
    return seconds, float(fetched[1])


def start_seconds(directory: Path, told: dict[str, str]) -> dict[str, float]:
    """Runs the init step, then the server, which finds its model there."""
    environment = environment_for(directory, told)
    init_step_seconds, fetch_seconds = load_seconds(environment)
    with replica(environment, init_step=False) as server:
        return {
            "start_seconds": init_step_seconds + server.start_seconds,
            "init_step_seconds": init_step_seconds,
            "fetch_seconds": fetch_seconds,
            "server_seconds": server.start_seconds,
        }


def moved_bytes(directory: Path, store: Path, url: str, name: str) -> tuple[int, float]:
    """Loads a model, and returns what the store has sent for it, and the seconds of fetching."""
    before = httpx.get(f"{url}/moved").json()
    _, seconds = load_seconds(environment_for(directory, release(store, url, name)))
    return httpx.get(f"{url}/moved").json() - before, seconds - 2 * STORE_DELAY_SECONDS


def add_large_model(store: Path) -> None:
    """Adds a file of the size of a small network; the init step does not look into it."""
    content = np.random.default_rng(0).bytes(LARGE_BYTES)
    write_artifact(store / "large/1", content, {"name": "large", "version": "1"})


def measure_times(directory: Path, store: Path) -> dict[str, float]:
    """Measures how long a start takes, and what an update moves of a small and a large model."""
    add_large_model(store)
    with run_store(store) as url, run_store(store, "measure.baselines:far_store") as far_url:
        moved, _ = moved_bytes(directory, store, far_url, "iris_svc")
        moved_of_large, large_seconds = moved_bytes(directory, store, far_url, "large")
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
    # The tests start all of them; a quick run shows the claim on two.
    names = QUICK_FAILURES if arguments.quick else ALL_FAILURES
    expected = EXPECTED | {"failures_refused": len(names)}
    with TemporaryDirectory() as temporary:
        directory = Path(temporary)
        store, broken = directory / "store", directory / "broken"
        copytree(HERE / "models", store)
        copytree(HERE / "models", broken)
        carelessly = partial(replica, app="measure.baselines:careless", init_step=False)
        arms: dict[str, Arm] = {"ours": replica, "careless": carelessly}
        counts, control = try_arms(directory, broken, arms, names).values()
        with run_store(store) as url:
            counts["models_served"] = serve_models(directory, store, url)
        figures = {} if arguments.quick else measure_times(directory, store)
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
