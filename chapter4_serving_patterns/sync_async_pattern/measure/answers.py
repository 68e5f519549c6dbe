"""Counts first and second answers while the heavy model is slow or gone, or Redis is."""

import asyncio
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from tools.measure.load import Request, closed_loop
from tools.measure.server import wait_until
from tools.measure.servers import run_uvicorn

from ..app import jobs
from ..app.model import Model
from ..app.schema import FEATURES
from ..train import heavy, model
from ..train.artifact import write_artifact
from .processes import PACKAGE, ROOT, Queue, run_api, run_workers

ROWS_PER_REQUEST = 32


class Models(NamedTuple):
    """The directories of the light model, the heavy one, and one that does ten times as much."""

    light: Path
    heavy: Path
    heavier: Path


@contextmanager
def everysec(directory: Path, cpus: set[int] | None = None) -> Iterator[Queue]:
    """Runs Redis with the options of docker-compose.yml."""
    with Queue(directory, "--appendfsync", "everysec", cpus=cpus) as redis:
        yield redis


@contextmanager
def suspended(redis: Queue) -> Iterator[None]:
    redis.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        redis.process.send_signal(signal.SIGCONT)


@contextmanager
def killed(redis: Queue) -> Iterator[None]:
    redis.kill()
    yield
    redis.start()


def train(directory: Path, copies: Sequence[int]) -> list[Path]:
    """Writes the light model, and a heavy one for each number of copies."""
    light, metadata = model.train(1)
    write_artifact(directory / "light", light, metadata)
    x_train, y_train, _, _ = model.load()
    classifier = heavy.fit(x_train, y_train)
    for each in copies:
        content = heavy.export(classifier, model.draw_warps(each))
        write_artifact(directory / str(each), content, metadata)
    return [directory / name for name in ("light", *map(str, copies))]


def model_of(directory: Path) -> dict[str, str]:
    return {"MODEL_DIRECTORY": str(directory)}


def answers_to(requests: list[Request], deadline_seconds: float = 10) -> list[dict[str, Any]]:
    """Sends the requests; a response that is not a 200 in time is empty."""
    load = closed_loop(
        requests,
        connections=8,
        count=len(requests),
        deadline_seconds=deadline_seconds,
        keep_bodies=True,
    )
    run = asyncio.run(load)
    found = zip(run.status_of, run.bodies or [], strict=True)
    return [json.loads(body) if status == 200 else {} for status, body in found]


def asking(url: str, rows: np.ndarray) -> list[Request]:
    """Returns a request for the label of each row."""
    bodies = [json.dumps({"data": [row.tolist()]}).encode() for row in rows]
    return [Request(f"{url}/predict/label", body) for body in bodies]


def count_answers(models: Models, directory: Path, rows: np.ndarray) -> dict[str, int]:
    """Counts the first answers in five situations, and the second ones that follow."""
    expected = Model(models.light, FEATURES).predict_labels(rows.tolist())
    counts = {"sent": len(rows)}
    ids: list[str] = []
    # A killed worker must not keep its jobs for long.
    heavy_env, heavier_env = (
        model_of(model) | {"LEASE_SECONDS": "1"} for model in (models.heavy, models.heavier)
    )
    # A busy machine must not cost second answers, so Redis gets more time than as shipped.
    env = model_of(models.light) | {"ENQUEUE_DEADLINE_SECONDS": "1"}
    with everysec(directory) as redis, run_api(redis.url, directory, env=env) as api:
        requests = asking(api.url, rows)

        def count_first(situation: str) -> None:
            answers = answers_to(requests)
            predicted = [answer.get("prediction") for answer in answers]
            counts[f"first_answers_{situation}"] = sum(
                found == [label] for found, label in zip(predicted, expected, strict=True)
            )
            ids.extend(answer["job_id"] for answer in answers if answer.get("job_id"))

        def is_accepted() -> bool:
            return bool(answers_to(requests[:1])[0]["job_id"])

        with run_workers(2, redis.url, directory, env=heavy_env):
            count_first("heavy")
        count_first("stopped")
        with suspended(redis):
            count_first("suspended")
        with run_workers(2, redis.url, directory, env=heavier_env):
            wait_until(is_accepted, "a job to be accepted")
            count_first("ten_times")
            wait_until(lambda: redis.client.xlen(jobs.STREAM) == 0, "an empty queue", 120)
        found = answers_to([Request(f"{api.url}/job/{job_id}") for job_id in ids])
        counts["accepted"] = len(ids)
        counts["second_answers"] = sum(job.get("status") == "done" for job in found)
        with killed(redis):
            count_first("killed")
    return counts


def count_waiting(models: Models, directory: Path, rows: np.ndarray) -> dict[str, int]:
    """Counts the first answers of a server whose callers wait for the heavy model."""
    counts = {}
    with (
        everysec(directory) as redis,
        run_uvicorn(
            f"{PACKAGE}.measure.baselines:synchronous",
            cwd=ROOT,
            ready="/health",
            # A typical first server runs with uvicorn's own defaults.
            options=[],
            env={"REDIS_URL": redis.url},
        ) as server,
    ):
        requests = asking(server.url, rows)
        situations: dict[str, AbstractContextManager[None]] = {
            "stopped": nullcontext(),
            "suspended": suspended(redis),
            "killed": killed(redis),
        }
        for name, situation in situations.items():
            with situation:
                answers = answers_to(requests[:8], deadline_seconds=0.5)
            counts[f"first_answers_{name}"] = sum("prediction" in answer for answer in answers)
        with run_workers(1, redis.url, directory, env=model_of(models.heavy)):
            (answer,) = answers_to(requests[:1], deadline_seconds=30)
        if "prediction" not in answer:
            raise SystemExit("error: the baseline does not answer even with a worker")
    return counts


def compare(light: Path, others: Sequence[Path], directory: Path) -> list[dict[str, int]]:
    """Counts, for each other model, the test rows whose label it changes, for better or worse."""
    _, _, x_test, y_test = model.load()
    parts = np.split(x_test, range(ROWS_PER_REQUEST, len(x_test), ROWS_PER_REQUEST))
    found = []
    # Every row needs its second answer, however busy the machine is.
    env = model_of(light) | {"ENQUEUE_DEADLINE_SECONDS": "30"}
    with (
        everysec(directory) as redis,
        run_api(redis.url, directory, env=env) as api,
        httpx.Client(base_url=api.url, timeout=60) as client,
    ):
        for other in others:
            with run_workers(1, redis.url, directory, env=model_of(other)):
                both = [both_answers(client, rows.tolist()) for rows in parts]
            first, second = np.concatenate(both, axis=1)
            was_right, is_right = first == y_test.astype(str), second == y_test.astype(str)
            found.append(
                {
                    "rows": len(y_test),
                    "changed": int(np.sum(first != second)),
                    "improved": int(np.sum(is_right & ~was_right)),
                    "worsened": int(np.sum(was_right & ~is_right)),
                }
            )
    return found


def both_answers(client: httpx.Client, rows: list[list[float]]) -> tuple[list[str], list[str]]:
    """Returns the labels of the first answer and those of the second."""
    answer = client.post("/predict/label", json={"data": rows}).raise_for_status().json()
    job = client.get(f"/job/{answer['job_id']}", params={"wait_seconds": 30}).json()
    return answer["prediction"], job["prediction"]
