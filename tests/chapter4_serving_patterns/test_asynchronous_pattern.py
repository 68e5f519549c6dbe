"""asynchronous_pattern: real Redis, a real API and real workers, some of which are killed."""

import asyncio
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from hashlib import sha256
from itertools import pairwise
from math import inf
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from redis import ResponseError
from redis.asyncio import Redis as AsyncRedis

from chapter4_serving_patterns.asynchronous_pattern.app import jobs
from chapter4_serving_patterns.asynchronous_pattern.app import worker as worker_module
from chapter4_serving_patterns.asynchronous_pattern.app.jobs import Delivery, Outcome
from chapter4_serving_patterns.asynchronous_pattern.app.model import Model
from chapter4_serving_patterns.asynchronous_pattern.app.schema import FEATURES
from chapter4_serving_patterns.asynchronous_pattern.app.settings import Settings
from chapter4_serving_patterns.asynchronous_pattern.app.worker import Worker
from chapter4_serving_patterns.asynchronous_pattern.measure import __main__ as measure
from chapter4_serving_patterns.asynchronous_pattern.measure.baselines import POISON
from chapter4_serving_patterns.asynchronous_pattern.measure.processes import (
    PACKAGE,
    ROOT,
    Queue,
    run_api,
    run_workers,
)
from chapter4_serving_patterns.asynchronous_pattern.train import model as trainer
from chapter4_serving_patterns.asynchronous_pattern.train.__main__ import main as train_main
from chapter4_serving_patterns.asynchronous_pattern.train.artifact import write_artifact
from tools.measure.results import Results
from tools.measure.results import load as load_results
from tools.measure.server import wait_until
from tools.measure.servers import Process
from tools.read import compose

LEASE_SECONDS = 0.5
FRAGILE = (f"{PACKAGE}.measure.baselines",)
# A worker whose batch is not finished until the test allows it.
PATIENT = f"""
from pathlib import Path
from time import sleep

from {PACKAGE}.app import worker
from {PACKAGE}.app.model import Model

class PatientModel(Model):
    def predict(self, rows):
        while not Path(__file__).with_name("go on").exists():
            sleep(0.01)
        return super().predict(rows)

worker.Model = PatientModel
worker.main()
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write_artifact(directory, *trainer.train(1))
    return directory


@pytest.fixture(scope="session")
def row(models: Path) -> list[float]:
    sample: list[list[float]] = json.loads((models / "metadata.json").read_bytes())["sample"]
    return sample[0]


class Stack:
    """Redis, an API and workers for one test."""

    def __init__(self, directory: Path, models: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.models = models
        self.stack = stack
        self.redis = stack.enter_context(Queue(directory / "redis"))

    def settings(self, **others: str) -> dict[str, str]:
        return {
            "MODEL_DIRECTORY": str(self.models),
            "LEASE_SECONDS": str(LEASE_SECONDS),
            # The API waits for Redis, however busy the machine is.
            "REDIS_DEADLINE_SECONDS": "60",
            **others,
        }

    def api(self, **others: str) -> httpx.Client:
        env = self.settings(**others)
        server = self.stack.enter_context(run_api(self.redis.url, self.directory, env=env))
        return self.stack.enter_context(httpx.Client(base_url=server.url, timeout=60))

    def workers(
        self, count: int, command: tuple[str, ...] = (f"{PACKAGE}.app.worker",), **others: str
    ) -> list[Process]:
        env = self.settings(**others)
        return self.stack.enter_context(
            run_workers(count, self.redis.url, self.directory, command, env=env)
        )

    def patient_worker(self, **others: str) -> Process:
        """Starts a worker that does not finish its first batch until `go_on`."""
        (self.directory / "patient.py").write_text(PATIENT)
        path = os.pathsep.join([str(ROOT), str(self.directory)])
        (worker,) = self.workers(1, ("patient",), PYTHONPATH=path, **others)
        return worker

    def go_on(self) -> None:
        (self.directory / "go on").touch()

    def counts(self) -> dict[str, int]:
        return asyncio.run(measure.counts_of(self.redis.url))

    def wait_until_finished(self) -> None:
        wait_until(lambda: self.counts()["pending"] == 0, "every job to be finished", 60)

    def held(self) -> list[dict[str, Any]]:
        """Returns the jobs that workers hold; none before a worker has created the group."""
        with suppress(ResponseError):
            found: list[dict[str, Any]] = self.redis.client.xpending_range(
                jobs.STREAM, jobs.GROUP, "-", "+", 1_000
            )
            return found
        return []

    def dead_letters(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.redis.client.xrange(jobs.DEAD)]


@pytest.fixture
def stack(tmp_path: Path, models: Path) -> Iterator[Stack]:
    with ExitStack() as exits:
        yield Stack(tmp_path, models, exits)


def submit(api: httpx.Client, rows: list[list[float]], path: str = "/predict") -> str:
    answer = api.post(path, json={"data": rows})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["job_id"]
    return job_id


def state(api: httpx.Client, job_id: str) -> dict[str, Any]:
    answer = api.get(f"/job/{job_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def finished(api: httpx.Client, job_id: str) -> dict[str, Any]:
    wait_until(lambda: state(api, job_id)["status"] in ("done", "failed"), f"job {job_id}")
    return state(api, job_id)


# --- the model ------------------------------------------------------------------------------------


def test_an_unwritable_output_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--output=/sys/models", "--copies=1"])
    with pytest.raises(SystemExit, match=r"^error: cannot write into /sys/models: .*$"):
        train_main()


@pytest.mark.parametrize("copies", [1, 50])
def test_the_onnx_graph_computes_the_same_as_scikit_learn(copies: int) -> None:
    x_train, y_train, x_test, y_test = trainer.load()
    pipeline, warps = trainer.fit(x_train, y_train), trainer.draw_warps(copies)
    session = onnxruntime.InferenceSession(trainer.export(pipeline, warps))
    (probabilities,) = session.run(["probabilities"], {"X": x_test})
    expected = trainer.predict(pipeline, warps, x_test)
    assert np.abs(probabilities - expected).max() < 1e-5
    alone = trainer.evaluate(pipeline.predict_proba(x_test), y_test)
    assert trainer.evaluate(expected, y_test)["accuracy"] >= alone["accuracy"] > 0.95


# --- the interface --------------------------------------------------------------------------------


def test_a_job_is_accepted_at_once_and_its_result_equals_the_model(
    stack: Stack, models: Path, row: list[float]
) -> None:
    api = stack.api()
    answer = api.post("/predict", json={"data": [row, row[::-1]]})
    job_id = answer.json()["job_id"]
    assert answer.status_code == 202
    assert len(job_id) == 32
    assert int(job_id, 16)
    assert answer.headers["location"] == f"/job/{job_id}"
    assert state(api, job_id) == {"job_id": job_id, "status": "queued"}
    stack.workers(1)
    found = finished(api, job_id)
    model = Model(models, FEATURES)
    assert found["status"] == "done"
    assert np.allclose(found["prediction"], model.predict([row, row[::-1]]), atol=1e-6)


def test_a_bad_body_never_becomes_a_job(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    assert api.get("/queue").json() == {"accepted": 0, "done": 0, "failed": 0, "pending": 0}
    for path in ("/predict", "/predict/label"):
        assert api.post(path, json={"data": [row, row[1:]]}).status_code == 422
        assert api.post(path, content=b" " * 300_000).status_code == 413
    assert stack.counts()["accepted"] == 0


def test_an_unknown_job_gets_404(stack: Stack) -> None:
    api = stack.api()
    for job_id in ("0" * 32, "x", "%2e%2e", "%00", "a" * 5_000, "jobs:counts", "%ff"):
        assert api.get(f"/job/{job_id}").status_code == 404, job_id


def test_a_result_expires_and_its_idempotency_key_with_it(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    stack.workers(1, RESULT_TTL_SECONDS="1")
    body: dict[str, Any] = {
        "json": {"data": [row]},
        "headers": {"Idempotency-Key": "once"},
    }
    job_id = api.post("/predict", **body).json()["job_id"]
    # Not by requesting the job, which may have expired already on a slow machine.
    wait_until(lambda: stack.counts()["done"] == 1, "the job to be done")
    wait_until(lambda: api.get(f"/job/{job_id}").status_code == 404, "the result to expire")
    wait_until(lambda: api.post("/predict", **body).json()["job_id"] != job_id, "the key to expire")


def test_above_their_limit_the_oldest_results_are_deleted_with_their_keys(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()

    def submit_with_key(number: int) -> str:
        headers = {"Idempotency-Key": f"key {number}"}
        answer = api.post("/predict/label", json={"data": [row]}, headers=headers)
        job_id: str = answer.json()["job_id"]
        return job_id

    ids = [submit_with_key(number) for number in range(10)]
    # The size of a result with the overhead that the limit counts.
    size = len(jobs.compact({"job_id": ids[0], "status": "done", "prediction": ["1"]})) + 550
    worker, _ = worker_in_this_process(stack, batch_jobs=4, max_result_bytes=3 * size)
    # A key that has expired, and belongs to a newer job.
    stack.redis.client.delete(f"idempotency:{sha256(b'key 1').hexdigest()}")
    ids.append(submit_with_key(1))
    for _ in range(3):
        worker.work()
    statuses = [api.get(f"/job/{job_id}").status_code for job_id in ids]
    assert statuses == [404] * 8 + [200] * 3
    assert stack.counts() == {"accepted": 11, "done": 11, "failed": 0, "pending": 0}
    assert stack.redis.client.hget(jobs.COUNTS, "result_bytes") == b"%d" % (3 * size)
    assert stack.redis.client.llen(jobs.FINISHED) == 3
    # The newer job kept its key; the others' keys are free again.
    assert submit_with_key(1) == ids[10]
    assert submit_with_key(9) == ids[9]
    assert submit_with_key(2) not in ids


def test_a_redis_that_results_would_fill_keeps_accepting_jobs(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    stack.redis.client.config_set("maxmemory", "4mb")
    worker, _ = worker_in_this_process(stack, max_result_bytes=1_000_000)
    ids = []
    for _ in range(100):
        ids += [submit(api, [row] * 32) for _ in range(16)]
        worker.work()
    assert stack.counts() == {"accepted": 1600, "done": 1600, "failed": 0, "pending": 0}
    assert state(api, ids[-1])["status"] == "done"
    assert api.get(f"/job/{ids[0]}").status_code == 404


def wait_until_logged(stack: Stack, total: int, reason: str) -> None:
    """Waits until the counts of a reason in the log of the API add up to a total."""
    (log,) = stack.directory.glob("*.log")

    def is_logged() -> bool:
        return sum(map(int, re.findall(rf"(\d+) x {reason}", log.read_text()))) == total

    wait_until(is_logged, f"the log to count {total} x {reason}")


# --- idempotency ----------------------------------------------------------------------------------


def test_concurrent_requests_with_one_key_create_one_job(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    headers = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
    with ThreadPoolExecutor(20) as threads:
        answers = list(
            threads.map(
                lambda _: api.post("/predict", json={"data": [row]}, headers=headers), range(20)
            )
        )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert stack.counts() == {"accepted": 1, "done": 0, "failed": 0, "pending": 1}


def test_a_key_reused_with_a_different_request_is_refused(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    headers = {"Idempotency-Key": "a key"}
    assert api.post("/predict", json={"data": [row]}, headers=headers).status_code == 202
    other = api.post("/predict", json={"data": [row, row]}, headers=headers)
    assert other.status_code == 422
    assert "Idempotency-Key" in other.json()["detail"]
    assert api.post("/predict/label", json={"data": [row]}, headers=headers).status_code == 422
    long_key = {"Idempotency-Key": "k" * 256}
    assert api.post("/predict", json={"data": [row]}, headers=long_key).status_code == 422
    assert stack.counts()["accepted"] == 1
    wait_until_logged(stack, 2, "422 the Idempotency-Key was used with a different request")
    wait_until_logged(stack, 1, "422 string_too_long")


# --- the bound ------------------------------------------------------------------------------------


def test_a_full_queue_refuses_jobs_and_never_exceeds_its_bound(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api(MAX_PENDING_JOBS="10")
    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(lambda _: api.post("/predict", json={"data": [row]}), range(60)))
    assert Counter(answer.status_code for answer in answers) == {202: 10, 503: 50}
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 503)
    assert stack.counts() == {"accepted": 10, "done": 0, "failed": 0, "pending": 10}
    wait_until_logged(stack, 50, "503 the queue is full")
    stack.workers(1)
    stack.wait_until_finished()
    assert api.post("/predict", json={"data": [row]}).status_code == 202


# --- workers --------------------------------------------------------------------------------------


# The first pixel of an image for which the model below returns NaN.
UNANSWERABLE = 15.5


class CountingModel(Model):
    """Notes the number of rows of each call; fails or returns NaN for some rows."""

    def __init__(self, *arguments: Any) -> None:
        self.calls: list[int] = []
        super().__init__(*arguments)

    def run(self, rows: list[list[float]], options: Any = None) -> Any:
        self.calls.append(len(rows))
        if any(row[0] == POISON for row in rows):
            raise RuntimeError("cannot predict this")
        probabilities = super().run(rows, options)
        probabilities[[row[0] == UNANSWERABLE for row in rows]] = np.nan
        return probabilities


def worker_in_this_process(stack: Stack, **settings: Any) -> tuple[Worker, CountingModel]:
    model = CountingModel(stack.models, FEATURES)
    # The predictions with which loading ends do not count.
    model.calls = []
    worker = Worker(
        Settings(redis_url=stack.redis.url, lease_seconds=LEASE_SECONDS, **settings), model
    )
    worker.join()
    return worker, model


def test_waiting_jobs_are_predicted_in_one_call(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    ids = [submit(api, [row] * (1 + number % 3)) for number in range(10)]
    worker, model = worker_in_this_process(stack)
    worker.work()
    assert model.calls == [19]
    answers = [state(api, job_id) for job_id in ids]
    assert [len(answer["prediction"]) for answer in answers] == [1 + n % 3 for n in range(10)]


def test_a_batch_never_exceeds_its_setting(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    for _ in range(10):
        submit(api, [row])
    worker, model = worker_in_this_process(stack, batch_jobs=4)
    for _ in range(3):
        worker.work()
    assert model.calls == [4, 4, 2]


def test_a_job_on_which_the_model_fails_does_not_affect_others(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    ids = [submit(api, [first, row]) for first in (row, [POISON, *row[1:]], row)]
    worker, _ = worker_in_this_process(stack)
    worker.work()
    assert [state(api, job_id)["status"] for job_id in ids] == ["done", "failed", "done"]
    assert "RuntimeError" in state(api, ids[1])["reason"]
    assert stack.counts() == {"accepted": 3, "done": 2, "failed": 1, "pending": 0}
    assert [letter[b"job"].decode() for letter in stack.dead_letters()] == [ids[1]]


def test_the_log_counts_batches_and_jobs_and_is_silent_without_any(
    stack: Stack, row: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "worker")
    api = stack.api()
    for first in (row[0], POISON, row[0], row[0], row[0]):
        submit(api, [[first, *row[1:]]])
    worker, _ = worker_in_this_process(stack, batch_jobs=2)
    for _ in range(4):
        worker.work()
    worker.log_counts()
    worker.log_counts()
    lines = [record.getMessage() for record in caplog.records if record.levelname == "INFO"]
    assert lines == ["batches: 3, jobs: 5, failed: 1"]


def test_batches_within_the_same_second_share_a_line(
    stack: Stack,
    row: list[float],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "worker")
    # A second that never ends: the first batch is logged at once, the others when the worker stops.
    monkeypatch.setattr(worker_module, "LOG_SECONDS", inf)
    api = stack.api()
    for _ in range(20):
        submit(api, [row])
    worker, _ = worker_in_this_process(stack, batch_jobs=2)
    stopping = Event()
    thread = Thread(target=worker.run, args=(stopping,))
    thread.start()
    stack.wait_until_finished()
    stopping.set()
    thread.join()
    lines = [message for message in caplog.messages if message.startswith("batches")]
    assert lines == ["batches: 1, jobs: 2, failed: 0", "batches: 9, jobs: 18, failed: 0"]


def test_the_lines_of_a_worker_add_up_to_its_jobs(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    (worker,) = stack.workers(1, BATCH_JOBS="3")
    for _ in range(20):
        submit(api, [row])
    stack.wait_until_finished()
    assert worker.stop() == 0
    counted = re.findall(r"INFO batches: \d+, jobs: (\d+), failed: 0", worker.log.read_text())
    assert sum(map(int, counted)) == 20


def test_a_job_for_which_the_model_returns_nan_fails(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    ids = [submit(api, [first, row]) for first in (row, [UNANSWERABLE, *row[1:]], row)]
    worker, _ = worker_in_this_process(stack)
    worker.work()
    assert [state(api, job_id)["status"] for job_id in ids] == ["done", "failed", "done"]
    assert "no finite answer" in state(api, ids[1])["reason"]


def allocate_too_much() -> None:
    """Lets ONNX Runtime fail to allocate memory."""
    shape = numpy_helper.from_array(np.array([2**46]), "shape")
    zeros = helper.make_node("ConstantOfShape", ["shape"], ["zeros"])
    output = helper.make_tensor_value_info("zeros", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph([zeros], "greedy", [], [output], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {})


def break_down() -> None:
    raise RuntimeError("the worker is broken")


@pytest.mark.parametrize("fail", [lambda: np.empty(2**50), allocate_too_much, break_down])
def test_jobs_survive_a_worker_that_cannot_predict(
    stack: Stack, row: list[float], fail: Callable[[], object]
) -> None:
    class FailingModel(CountingModel):
        def predict(self, rows: list[list[float]]) -> Any:
            # Where memory is short, it is enough for the sample again.
            if row in rows or fail is break_down:
                fail()
            return super().predict(rows)

    api = stack.api()
    row = [1.0, *row[1:]]
    ids = [submit(api, [row]) for _ in range(8)]
    worker, healthy = worker_in_this_process(stack)
    worker.model = FailingModel(stack.models, FEATURES)
    given_back = []
    for _ in range(worker.settings.max_deliveries + 2):
        worker.next_look_at_expired = 0
        worker.work()
        given_back.append(worker.give_back())
    # After the first time, they are delivered one by one.
    assert given_back == [8, 1, 1, 1, 1]
    assert {held["times_delivered"] for held in stack.held()} == {0}
    assert {state(api, job_id)["status"] for job_id in ids} == {"queued"}
    worker.model, worker.next_look_at_expired = healthy, 0
    for _ in ids:
        worker.work()
    assert {state(api, job_id)["status"] for job_id in ids} == {"done"}
    assert stack.counts() == {"accepted": 8, "done": 8, "failed": 0, "pending": 0}


def test_a_shortage_of_memory_outside_the_model_costs_no_delivery(
    stack: Stack, row: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    api = stack.api()
    job_id = submit(api, [row])
    worker, _ = worker_in_this_process(stack)
    monkeypatch.setattr(worker_module, "PAUSE_SECONDS", 0)
    stopping = Event()
    numbers: list[int] = []
    outcomes_of = worker.outcomes_of

    def short_of_memory(deliveries: list[Delivery]) -> list[Outcome]:
        numbers.extend(delivery.number for delivery in deliveries)
        if len(numbers) < 5:
            raise MemoryError
        stopping.set()
        return outcomes_of(deliveries)

    monkeypatch.setattr(worker, "outcomes_of", short_of_memory)
    worker.run(stopping)
    assert numbers == [1] * 5
    assert state(api, job_id)["status"] == "done"


UNREADABLE: list[dict[Any, Any]] = [
    {"nothing": "of use"},
    {"job": "a", "rows": "{"},
    {"job": "a", "rows": "[]"},
    {"job": "a", "rows": "[[1, 2]]"},
    {"job": "a", "rows": '{"a": 1}'},
    {"job": "a", "rows": "[[NaN" + ", 1" * 63 + "]]"},
    {"job": "a", "rows": "[[3e38" + ", 1" * 63 + "]]"},
    {"job": b"\xff", "rows": b"\xff"},
    {"job": "a", "rows": "[" * 100_000},
    {"job": "a", "rows": "[[1" + "0" * 400 + ", 1" * 63 + "]]"},
]


def test_an_unreadable_entry_becomes_a_dead_letter_at_once(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    for fields in UNREADABLE:
        stack.redis.client.xadd(jobs.STREAM, fields)
    job_id = submit(api, [row])
    stack.workers(1)
    assert finished(api, job_id)["status"] == "done"
    letters = stack.dead_letters()
    assert len(letters) == len(UNREADABLE)
    for letter in letters:
        assert letter[b"deliveries"] == b"1"
        assert b"cannot be read" in letter[b"failure"]
    assert stack.counts() == {"accepted": 1, "done": 1, "failed": 0, "pending": 0}


def test_an_accepted_job_that_becomes_unreadable_fails_with_the_reason(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    job_id = submit(api, [row])
    ((_, fields),) = stack.redis.client.xrange(jobs.STREAM)
    stack.redis.client.delete(jobs.STREAM)
    stack.redis.client.xadd(jobs.STREAM, fields | {b"rows": b"garbage"})
    stack.workers(1)
    found = finished(api, job_id)
    assert found["status"] == "failed"
    assert "cannot be read" in found["reason"]


# --- killed and stopped workers -------------------------------------------------------------------


def test_another_worker_finishes_the_jobs_of_a_killed_one(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    ids = [submit(api, [row]) for _ in range(8)]
    worker = stack.patient_worker()
    wait_until(lambda: len(stack.held()) == 8, "the batch to begin")
    worker.kill()
    assert stack.counts()["pending"] == 8
    stack.workers(1)
    stack.wait_until_finished()
    assert {state(api, job_id)["status"] for job_id in ids} == {"done"}
    assert stack.counts() == {"accepted": 8, "done": 8, "failed": 0, "pending": 0}


def test_a_job_that_kills_its_worker_is_given_up_after_three_deliveries(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    ids = [submit(api, [row]) for _ in range(10)]
    poison = submit(api, [[POISON, *row[1:]]])
    ids += [submit(api, [row]) for _ in range(10)]
    (worker,) = stack.workers(1, FRAGILE)
    deaths = 0
    while stack.counts()["pending"]:
        if not worker.is_alive():
            deaths += 1
            worker.start()
        time.sleep(0.01)
    assert deaths == 3
    assert {state(api, job_id)["status"] for job_id in ids} == {"done"}
    found = state(api, poison)
    assert found["status"] == "failed"
    assert found["reason"] == "given up after 3 deliveries"
    (letter,) = stack.dead_letters()
    assert (letter[b"job"].decode(), letter[b"deliveries"]) == (poison, b"3")
    assert stack.counts() == {"accepted": 21, "done": 20, "failed": 1, "pending": 0}


def test_a_worker_that_wakes_up_after_its_lease_finishes_no_job_twice(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    ids = [submit(api, [row]) for _ in range(4)]
    zombie = stack.patient_worker()
    wait_until(lambda: len(stack.held()) == 4, "the batch to begin")
    zombie.process.send_signal(signal.SIGSTOP)
    stack.workers(1)
    stack.wait_until_finished()
    answers = [state(api, job_id) for job_id in ids]
    stack.go_on()
    zombie.process.send_signal(signal.SIGCONT)
    extra = submit(api, [row])
    finished(api, extra)
    wait_until(lambda: "finished by others" in zombie.log.read_text(), "the zombie to notice")
    assert [state(api, job_id) for job_id in ids] == answers
    assert stack.counts() == {"accepted": 5, "done": 5, "failed": 0, "pending": 0}


def test_a_long_batch_keeps_its_lease(stack: Stack, row: list[float]) -> None:
    # Long enough for a process that gets no CPU time for a second.
    lease_seconds = "3"
    api = stack.api(LEASE_SECONDS=lease_seconds)
    job_id = submit(api, [row] * 32)
    stack.patient_worker(LEASE_SECONDS=lease_seconds)
    wait_until(lambda: len(stack.held()) == 1, "the job to begin")
    owner = stack.held()[0]["consumer"]
    stack.workers(1, LEASE_SECONDS=lease_seconds)
    idle_ms: list[int] = []

    def was_renewed_for_longer_than_it_lasts() -> bool:
        (held,) = stack.held()
        assert (held["consumer"], held["times_delivered"]) == (owner, 1)
        idle_ms.append(held["time_since_delivered"])
        # The idle time restarts from zero three times per lease.
        return sum(after < before for before, after in pairwise(idle_ms)) > 3

    wait_until(was_renewed_for_longer_than_it_lasts, "the lease to be renewed")
    assert state(api, job_id)["status"] == "running"
    stack.go_on()
    assert finished(api, job_id)["status"] == "done"


def test_sigterm_finishes_the_current_batch_and_leaves_the_rest_queued(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    ids = [submit(api, [row]) for _ in range(6)]
    worker = stack.patient_worker(BATCH_JOBS="3")
    wait_until(lambda: len(stack.held()) == 3, "the batch to begin")
    worker.process.terminate()
    stack.go_on()
    assert worker.stop() == 0
    statuses = [state(api, job_id)["status"] for job_id in ids]
    assert statuses == ["done"] * 3 + ["queued"] * 3
    assert stack.held() == []
    assert stack.redis.client.xinfo_consumers(jobs.STREAM, jobs.GROUP) == []


def test_dead_consumers_are_removed_unless_they_hold_jobs(stack: Stack, row: list[float]) -> None:
    worker, _ = worker_in_this_process(stack)
    client = stack.redis.client
    api = stack.api()
    submit(api, [row])
    client.xreadgroup(jobs.GROUP, "dead-with-a-job", {jobs.STREAM: ">"})
    client.xreadgroup(jobs.GROUP, "dead", {jobs.STREAM: ">"})
    wait_until(
        lambda: all(
            found["idle"] > 20 for found in client.xinfo_consumers(jobs.STREAM, jobs.GROUP)
        ),
        "the consumers to be idle",
    )
    jobs.forget_consumers(worker.redis, worker.name, 0.01)
    names = [found["name"] for found in client.xinfo_consumers(jobs.STREAM, jobs.GROUP)]
    assert names == [b"dead-with-a-job"]
    assert len(stack.held()) == 1


# --- Redis fails ----------------------------------------------------------------------------------


def test_workers_recreate_the_group_when_redis_has_lost_it(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    stack.workers(1)
    finished(api, submit(api, [row]))
    stack.redis.client.flushall()
    assert finished(api, submit(api, [row]))["status"] == "done"


def test_a_killed_redis_comes_back_with_every_job(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    ids = [submit(api, [row]) for _ in range(50)]
    stack.redis.kill()
    refused = api.post("/predict", json={"data": [row]})
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    for path in ("/ready", f"/job/{ids[0]}", "/queue", "/predict/test"):
        assert api.get(path).status_code == 503, path
    assert api.get("/health").status_code == 200
    # A worker that starts while Redis is down says so and waits for it.
    (worker,) = stack.workers(1)
    wait_until(lambda: "Redis" in worker.log.read_text(), "the worker to report the error")
    stack.redis.start()
    stack.wait_until_finished()
    wait_until(lambda: api.get("/ready").status_code == 200, "the API to be ready again")
    assert {state(api, job_id)["status"] for job_id in ids} == {"done"}
    assert stack.counts() == {"accepted": 50, "done": 50, "failed": 0, "pending": 0}


# Preloaded into Redis, this makes every fdatasync take three seconds. With `everysec` Redis stops
# writing for two seconds while one is in progress, and keeps accepted jobs in memory.
SLOW_DISK = """
#include <sys/syscall.h>
#include <unistd.h>
int fdatasync(int file) { sleep(3); return syscall(SYS_fdatasync, file); }
"""


async def accept(redis_url: str, row: list[float]) -> list[str]:
    """Enqueues ten jobs at once, and returns their IDs."""
    async with AsyncRedis.from_url(redis_url, socket_timeout=60) as redis:
        several = [jobs.enqueue(redis, "label", [row], None, 100_000) for _ in range(10)]
        return list(await asyncio.gather(*several))


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="a slow disk needs Linux and cc"
)
@pytest.mark.parametrize(("options", "loses"), [([], False), (["--appendfsync", "everysec"], True)])
def test_a_redis_killed_on_a_slow_disk_loses_jobs_only_without_appendfsync_always(
    tmp_path: Path, row: list[float], options: list[str], loses: bool
) -> None:
    library = tmp_path / "slow_disk.so"
    compiler = ["cc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(compiler, input=SLOW_DISK, text=True, check=True)
    ids: list[str] = []
    with Queue(tmp_path / "redis", *options, env={"LD_PRELOAD": str(library)}) as redis:

        def has_jobs_in_memory_only() -> bool:
            ids.extend(asyncio.run(accept(redis.url, row)))
            # Empty after a write; with `always` Redis writes before it replies.
            return bool(redis.client.info("persistence")["aof_buffer_length"])

        if loses:
            wait_until(has_jobs_in_memory_only, "a job that is only in memory", 60)
        else:
            assert not any(has_jobs_in_memory_only() for _ in range(2))
        redis.kill()
        redis.start()
        lost = [job_id for job_id in ids if not redis.client.exists(jobs.record_of(job_id))]
    assert bool(lost) == loses


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a running process")
def test_a_redis_whose_disk_is_full_ends_and_comes_back_with_every_job(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    ids = [submit(api, [row]) for _ in range(10)]
    assert compose.load(measure.HERE).services["redis"].restart == "unless-stopped"
    # Redis writes the beginning of the next job, and then there is no more space.
    redis = stack.redis.process
    largest = max(path.stat().st_size for path in (stack.directory / "redis").rglob("*.aof*"))
    resource.prlimit(redis.pid, resource.RLIMIT_FSIZE, (largest + 100, resource.RLIM_INFINITY))
    assert api.post("/predict", json={"data": [row]}).status_code == 503
    assert redis.wait(10) != 0
    stack.redis.start()
    stack.workers(1)
    stack.wait_until_finished()
    assert {state(api, job_id)["status"] for job_id in ids} == {"done"}
    assert stack.counts() == {"accepted": 10, "done": 10, "failed": 0, "pending": 0}


def test_a_redis_that_hangs_leads_to_503_within_the_deadline(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api(REDIS_DEADLINE_SECONDS="0.3")
    assert api.get("/ready").status_code == 200
    stack.redis.process.send_signal(signal.SIGSTOP)
    try:
        # The response comes while Redis hangs, so the API did not wait for Redis.
        answer = api.post("/predict", json={"data": [row]})
        assert answer.status_code == 503
        assert api.get("/health").status_code == 200
    finally:
        stack.redis.process.send_signal(signal.SIGCONT)
    wait_until(lambda: api.get("/ready").status_code == 200, "the API to be ready again")


def test_a_redis_without_memory_refuses_jobs_but_lets_workers_finish(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    (first,) = stack.workers(1)
    finished(api, submit(api, [row]))
    first.stop()
    ids = [submit(api, [row]) for _ in range(20)]
    stack.redis.client.config_set("maxmemory", "1")
    refused = api.post("/predict", json={"data": [row]})
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    stack.workers(1)
    stack.wait_until_finished()
    assert {state(api, job_id)["status"] for job_id in ids} == {"done"}
    stack.redis.client.config_set("maxmemory", "0")
    assert finished(api, submit(api, [row]))["status"] == "done"
    assert stack.counts() == {"accepted": 22, "done": 22, "failed": 0, "pending": 0}


def test_the_api_stays_ready_while_requests_take_all_connections_to_redis(stack: Stack) -> None:
    api = stack.api(MAX_REQUESTS_AT_ONCE="1")
    assert api.get("/ready").status_code == 200
    stack.redis.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as threads:
            counts = threads.submit(api.get, "/queue")
            wait_until(lambda: api.get("/label").status_code == 503, "the request to be counted")
            ready = threads.submit(api.get, "/ready")
            wait([ready], timeout=1)
            stack.redis.process.send_signal(signal.SIGCONT)
            assert [counts.result().status_code, ready.result().status_code] == [200, 200]
    finally:
        stack.redis.process.send_signal(signal.SIGCONT)


def fill_memory(redis: Queue) -> None:
    redis.client.config_set("maxmemory", "1")


def become_a_replica(redis: Queue) -> None:
    redis.client.replicaof("127.0.0.1", "1")


def fail_to_save(redis: Queue) -> None:
    (Path(redis.client.config_get("dir")["dir"]) / "dump.rdb").mkdir()
    redis.client.config_set("save", "3600 1")
    redis.client.bgsave()
    wait_until(
        lambda: redis.client.info("persistence")["rdb_last_bgsave_status"] == "err",
        "Redis to fail to save",
    )


@pytest.mark.parametrize(
    ("refuse_writes", "reason"),
    [
        (fill_memory, "OutOfMemoryError"),
        (become_a_replica, "ReadOnlyError"),
        (fail_to_save, "MISCONF"),
    ],
)
def test_the_api_is_not_ready_while_redis_refuses_writes_and_logs_the_reason(
    stack: Stack, row: list[float], refuse_writes: Callable[[Queue], None], reason: str
) -> None:
    api = stack.api()
    submit(api, [row])
    assert api.get("/ready").status_code == 200
    refuse_writes(stack.redis)
    began = time.monotonic()
    assert [api.get("/ready").status_code for _ in range(50)] == [503] * 50
    assert api.get("/health").status_code == 200
    wait_until_logged(stack, 50, rf"503 the queue is not available: [^;]*{reason}")
    (api_log,) = stack.directory.glob("*.log")
    assert api_log.read_text().count("refused: ") <= time.monotonic() - began


def test_accepted_is_the_sum_of_done_failed_and_pending_at_every_instant(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    stack.workers(2)
    with ThreadPoolExecutor(4) as threads:
        requests = threads.map(lambda _: submit(api, [row]), range(300))
        seen = 0
        while stack.counts()["done"] < 300:
            counts = api.get("/queue").json()
            assert counts["accepted"] == counts["done"] + counts["failed"] + counts["pending"]
            seen += 1
        assert len(set(requests)) == 300
    assert seen > 0


# --- the measurement ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("measured")
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    subprocess.run([*command, "--output", str(directory / "measure")], check=True, cwd=ROOT)
    return load_results(directory)


@pytest.mark.budget("measure --quick")
def test_the_measurement_finds_no_lost_job(results: Results) -> None:
    assert results.holds
    assert results.counts["lost"] == 0 < results.control["lost"]
    assert results.counts["worker_kills"] > 0
    assert results.counts["redis_kills"] > 0


@pytest.mark.parametrize(
    "change",
    [
        {"lost": 1},
        {"unaccounted": 1},
        {"accepted_twice": 1},
        {"poison_dead_lettered": 0},
        {"failed": 3},
        {"done": 0},
    ],
)
def test_the_claim_fails_for_other_counts(results: Results, change: dict[str, int]) -> None:
    assert measure.claim_holds(results.counts, measure.QUICK.poison_jobs)
    assert not measure.claim_holds(results.counts | change, measure.QUICK.poison_jobs)


def test_the_figures_are_the_ends_of_the_series() -> None:
    series = {
        "model_ms": [7.0, 30.0, 350.0],
        "ack_p99_ms": [6.0, 9.0, 3.0],
        "sync_p99_ms": [8.0, 33.0, 352.0],
    }
    drains = {"jobs_per_second": 15_000.0, "single_jobs_per_second": 1_500.0}
    figures = measure.figures_of(series, drains)
    assert set(figures) == set(load_results(measure.HERE).figures)
    assert (figures["ack_p99_slow_ms"], figures["ack_p99_ratio"]) == (3, 0.5)
    assert (figures["sync_p99_ratio"], figures["batched_ratio"]) == (44, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_job_of_twenty_thousand_is_lost(models: Path, tmp_path: Path) -> None:
    counts = measure.count_lost(models, tmp_path / "killed", measure.FULL)
    assert measure.claim_holds(counts)
