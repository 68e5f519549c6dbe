"""sync_async_pattern: first answers whatever happens, second ones later, and callers who wait."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from redis.asyncio import Redis

from chapter4_serving_patterns.sync_async_pattern.app import jobs
from chapter4_serving_patterns.sync_async_pattern.app.main import REST_SECONDS
from chapter4_serving_patterns.sync_async_pattern.app.model import Model
from chapter4_serving_patterns.sync_async_pattern.app.schema import FEATURES
from chapter4_serving_patterns.sync_async_pattern.app.waiting import Waiting
from chapter4_serving_patterns.sync_async_pattern.measure import __main__ as measure
from chapter4_serving_patterns.sync_async_pattern.measure.answers import (
    everysec,
    killed,
    suspended,
    train,
)
from chapter4_serving_patterns.sync_async_pattern.measure.processes import (
    PACKAGE,
    ROOT,
    Queue,
    run_api,
    run_workers,
)
from chapter4_serving_patterns.sync_async_pattern.train import heavy, model
from chapter4_serving_patterns.sync_async_pattern.train.__main__ import main as train_main
from tools.measure.results import Results
from tools.measure.results import load as load_results
from tools.measure.server import Server, wait_until
from tools.measure.servers import Process, run_uvicorn
from tools.read import compose

LEASE_SECONDS = 0.5
# Longer than any test runs.
FOREVER_SECONDS = 3_600.0
# A light model that fails.
FAILING = f"""
from {PACKAGE}.app import main
from {PACKAGE}.app.model import NoAnswerError

class FailingModel(main.Model):
    def predict(self, rows):
        raise NoAnswerError("the model has no finite answer to these numbers")

main.Model = FailingModel
app = main.app
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    light, heavier = train(tmp_path_factory.mktemp("models"), [4])
    return {"light": light, "heavy": heavier}


@pytest.fixture(scope="session")
def row() -> list[float]:
    """An image that the light model takes for a 1, and the heavy one for a 4."""
    _, _, x_test, _ = model.load()
    found: list[float] = x_test[402].tolist()
    return found


class Stack:
    """Redis, and an API and workers on demand."""

    def __init__(self, directory: Path, models: dict[str, Path], stack: ExitStack) -> None:
        self.directory = directory
        self.models = models
        self.stack = stack
        self.redis = stack.enter_context(everysec(directory / "redis"))

    def server(self, **settings: str) -> Server:
        env = {
            "MODEL_DIRECTORY": str(self.models["light"]),
            "LEASE_SECONDS": str(LEASE_SECONDS),
            # The tests below set a bound that a busy machine keeps.
            "ENQUEUE_DEADLINE_SECONDS": "10",
            **settings,
        }
        return self.stack.enter_context(run_api(self.redis.url, self.directory, env=env))

    def client(self, server: Server) -> httpx.Client:
        return self.stack.enter_context(httpx.Client(base_url=server.url, timeout=60))

    def api(self, **settings: str) -> httpx.Client:
        return self.client(self.server(**settings))

    def workers(self, count: int = 1, **settings: str) -> list[Process]:
        env = {
            "MODEL_DIRECTORY": str(self.models["heavy"]),
            "LEASE_SECONDS": str(LEASE_SECONDS),
            **settings,
        }
        return self.stack.enter_context(run_workers(count, self.redis.url, self.directory, env=env))

    def waiting(self, api: httpx.Client, job_id: str) -> Future[httpx.Response]:
        """Waits for a job in a thread."""
        threads = self.stack.enter_context(ThreadPoolExecutor(1))
        return threads.submit(api.get, f"/job/{job_id}", params={"wait_seconds": 30})

    def wait_for_callers(self) -> None:
        """Waits until the API looks for the jobs of callers who wait."""
        before = calls(self.redis)
        wait_until(lambda: calls(self.redis) > before, "a caller to wait")

    def log(self) -> str:
        return "".join(path.read_text() for path in self.directory.glob("*.log"))


def calls(redis: Queue) -> int:
    found: int = redis.client.info("commandstats").get("cmdstat_mget", {"calls": 0})["calls"]
    return found


@pytest.fixture
def stack(tmp_path: Path, models: dict[str, Path]) -> Iterator[Stack]:
    with ExitStack() as exits:
        yield Stack(tmp_path, models, exits)


def ask(api: httpx.Client, row: list[float], path: str = "/predict/label") -> dict[str, Any]:
    answer = api.post(path, json={"data": [row]})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def second(api: httpx.Client, job_id: str) -> dict[str, Any]:
    answer = api.get(f"/job/{job_id}", params={"wait_seconds": 30})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# --- the models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 8])
def test_the_onnx_graph_computes_the_same_as_scikit_learn(copies: int) -> None:
    x_train, y_train, x_test, y_test = model.load()
    classifier, warps = heavy.fit(x_train, y_train), model.draw_warps(copies)
    session = onnxruntime.InferenceSession(heavy.export(classifier, warps))
    (probabilities,) = session.run(["probabilities"], {"X": x_test})
    expected = heavy.predict(classifier, warps, x_test)
    assert np.abs(probabilities - expected).max() < 1e-3
    assert model.evaluate(probabilities, y_test)["accuracy"] > 0.98


def test_training_writes_both_models_and_the_api_is_told_the_light_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", f"--output={tmp_path / 'models'}", "--copies=2"])
    train_main()
    services = compose.load(measure.HERE).services
    directory = services["api"].environment["MODEL_DIRECTORY"]
    light, heavier = Model(tmp_path / directory, FEATURES), Model(tmp_path / "models", FEATURES)
    assert (light.metadata["name"], heavier.metadata["name"]) == ("digits_light", "digits_heavy")
    assert (light.metadata["copies"], heavier.metadata["copies"]) == (1, 2)
    assert heavier.metadata["metrics"]["accuracy"] > light.metadata["metrics"]["accuracy"]
    assert heavier.metadata["prediction_sample"] != light.metadata["prediction_sample"]
    # The Makefile waits for the last file that is written.
    written = (tmp_path / "models").rglob("*.*")
    assert max(written, key=lambda path: path.stat().st_mtime_ns).parent.name == "models"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--output=/sys/models", "--copies=1"], "error: cannot write into /sys/models"),
        (["--copies=0"], "2"),
    ],
)
def test_training_refuses_bad_arguments(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], reason: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with pytest.raises(SystemExit, match=reason):
        train_main()


# --- both answers ---------------------------------------------------------------------------------


def test_both_answers_are_those_of_their_models(
    stack: Stack, models: dict[str, Path], row: list[float]
) -> None:
    api = stack.api()
    rows = [row, row[::-1]]
    first = api.post("/predict", json={"data": rows}).json()
    labels = api.post("/predict/label", json={"data": rows}).json()
    light, heavier = Model(models["light"], FEATURES), Model(models["heavy"], FEATURES)
    assert np.allclose(first["prediction"], light.predict(rows), atol=1e-6)
    assert labels["prediction"] == light.predict_labels(rows)
    assert api.get(f"/job/{first['job_id']}").json()["status"] == "queued"
    stack.workers(2)
    found = second(api, first["job_id"])
    assert found["status"] == "done"
    assert np.allclose(found["prediction"], heavier.predict(rows), atol=1e-5)
    assert second(api, labels["job_id"])["prediction"] == heavier.predict_labels(rows)
    assert (labels["prediction"][0], heavier.predict_labels([row])) == ("1", ["4"])


def test_a_bad_body_never_becomes_a_job(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    for path in ("/predict", "/predict/label"):
        for data in ([row, row[1:]], [], [[None, *row[1:]]], [row] * 33, [[17, *row[1:]]]):
            assert api.post(path, json={"data": data}).status_code == 422
        assert api.post(path, content=b" " * 300_000).status_code == 413
    assert api.get("/queue").json() == {"accepted": 0, "done": 0, "failed": 0, "pending": 0}


def test_a_light_model_that_fails_does_not_cost_the_second_answer(
    stack: Stack, row: list[float]
) -> None:
    (stack.directory / "failing.py").write_text(FAILING)
    env = {
        "PYTHONPATH": f"{ROOT}:{stack.directory}",
        "REDIS_URL": stack.redis.url,
        "MODEL_DIRECTORY": str(stack.models["light"]),
        "ENQUEUE_DEADLINE_SECONDS": "10",
    }
    with run_uvicorn("failing:app", cwd=stack.directory, ready="/health", env=env) as server:
        api = stack.client(server)
        assert api.post("/predict", json={"data": [row]}).status_code == 422
        assert api.get("/ready").status_code == 422
        wait_until(lambda: stack.redis.client.xlen(jobs.STREAM) == 1, "the job")


def test_a_full_queue_costs_only_the_second_answer(stack: Stack, row: list[float]) -> None:
    api = stack.api(MAX_PENDING_JOBS="3")
    answers = [ask(api, row) for _ in range(10)]
    assert [answer["prediction"] for answer in answers] == [["1"]] * 10
    assert [answer["job_id"] is None for answer in answers] == [False] * 3 + [True] * 7
    assert api.get("/queue").json()["accepted"] == 3
    assert "no second answers for 1 s: QueueFullError" in stack.log()


# --- Redis and workers fail -----------------------------------------------------------------------


def test_first_answers_go_on_without_workers_and_without_redis(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api(ENQUEUE_DEADLINE_SECONDS="0.5", REDIS_DEADLINE_SECONDS="0.5")
    queued = ask(api, row)["job_id"]
    with suspended(stack.redis):
        assert ask(api, row) == {"prediction": ["1"], "job_id": None}
        assert api.get("/predict/test").json()["job_id"] is None
        assert api.get("/ready").status_code == 200
        assert api.get("/health/all").json() == {"light": "ok", "heavy": "ng"}
        for path in ("/queue", f"/job/{queued}", f"/job/{queued}?wait_seconds=30"):
            refused = api.get(path)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1"), path
    wait_until(lambda: ask(api, row)["job_id"] is not None, "a second answer to be promised")
    stack.redis.kill()
    assert ask(api, row) == {"prediction": ["1"], "job_id": None}
    assert api.get("/ready").status_code == 200
    assert api.get("/health/all").json() == {"light": "ok", "heavy": "ng"}
    stack.redis.start()
    stack.workers()
    wait_until(lambda: ask(api, row)["job_id"] is not None, "a second answer to be promised")
    assert second(api, queued)["prediction"] == ["4"]
    wait_until(lambda: api.get("/health/all").json()["heavy"] == "ok", "the heavy model")


def test_a_redis_that_hangs_is_asked_once_a_second(stack: Stack, row: list[float]) -> None:
    """A server that accepts connections and says nothing counts how often it is asked."""
    connections: list[socket.socket] = []

    def accept() -> None:
        while True:
            connections.append(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=accept, daemon=True).start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        api = stack.api(REDIS_URL=url, ENQUEUE_DEADLINE_SECONDS="0.05")
        began = monotonic()
        assert {ask(api, row)["job_id"] for _ in range(50)} == {None}
        most = 1 + (monotonic() - began) / REST_SECONDS
        # Each time it connects at most twice, because a pooled connection may be stale.
        assert 1 <= len(connections) <= 2 * most
        # Not by the time-out of the client library, which is longer and has a message.
        assert 1 <= stack.log().count("no second answers for 1 s: TimeoutError()") <= most
    for connection in connections:
        connection.close()


def test_the_api_starts_before_redis(stack: Stack, row: list[float]) -> None:
    stack.redis.kill()
    api = stack.api()
    assert api.get("/ready").status_code == 200
    assert ask(api, row)["job_id"] is None
    assert api.get("/health/all").json() == {"light": "ok", "heavy": "ng"}
    stack.redis.start()
    wait_until(lambda: ask(api, row)["job_id"] is not None, "a second answer to be promised")


def test_a_redis_without_memory_costs_only_the_second_answer(
    stack: Stack, row: list[float]
) -> None:
    api = stack.api()
    stack.workers()
    wait_until(lambda: api.get("/health/all").json()["heavy"] == "ok", "the heavy model")
    stack.redis.client.config_set("maxmemory", "1")
    assert ask(api, row) == {"prediction": ["1"], "job_id": None}
    assert api.get("/health/all").json() == {"light": "ok", "heavy": "ng"}


def test_health_all_notices_workers_that_stop_and_workers_that_die(stack: Stack) -> None:
    api = stack.api()

    def heavy() -> str:
        answer = api.get("/health/all")
        assert (answer.status_code, answer.json()["light"]) == (200, "ok")
        found: str = answer.json()["heavy"]
        return found

    assert heavy() == "ng"
    first, other = stack.workers(2)
    wait_until(lambda: heavy() == "ok", "the workers")
    first.kill()
    assert other.stop() == 0
    wait_until(lambda: heavy() == "ng", "the lease of the killed worker")


def test_a_worker_with_a_long_batch_is_well(stack: Stack, row: list[float]) -> None:
    api = stack.api(LEASE_SECONDS="600")
    ask(api, row)
    jobs.create_group(stack.redis.client)
    assert api.get("/health/all").json()["heavy"] == "ng"
    # It holds a job, and asks for no more.
    assert jobs.take_new(stack.redis.client, "busy", 1, 1)
    stack.redis.client.ping()
    assert api.get("/health/all").json()["heavy"] == "ok"


# --- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", ["-1", "31", "NaN", "inf", "-inf", "1e999", "", "x", "true"])
def test_a_bad_time_to_wait_is_refused(shared: httpx.Client, seconds: str) -> None:
    assert shared.get(f"/job/x?wait_seconds={seconds}").status_code == 422


@pytest.mark.parametrize("job_id", ["0" * 32, "x", "%2e%2e", "%00", "a" * 5_000, "%ff"])
def test_waiting_for_an_unknown_job_gets_404(shared: httpx.Client, job_id: str) -> None:
    assert shared.get(f"/job/{job_id}?wait_seconds=30").status_code == 404
    assert shared.get(f"/job/{job_id}").status_code == 404


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Iterator[Any]:
    with ExitStack() as exits:
        yield Stack(tmp_path_factory.mktemp("shared"), models, exits).api()


def test_a_second_answer_expires(stack: Stack, row: list[float]) -> None:
    api = stack.api()
    stack.workers(RESULT_TTL_SECONDS="1")
    job_id = ask(api, row)["job_id"]
    url = f"/job/{job_id}?wait_seconds=30"
    wait_until(lambda: api.get(url).status_code == 404, "the result to expire")


def run_waiting(redis: Queue, most: int, test: Callable[[Waiting, Redis], Awaitable[None]]) -> None:
    """Runs a test with `Waiting` in this process."""

    async def run() -> None:
        async with Redis.from_url(redis.url, socket_timeout=None) as client:
            await test(Waiting(client, most, deadline_seconds=10), client)

    asyncio.run(run())


async def store_jobs(client: Redis, count: int) -> list[str]:
    rows = [[0.0] * FEATURES]
    return [await jobs.enqueue(client, "label", rows, None, count) for _ in range(count)]


async def finish(client: Redis, job_ids: list[str]) -> None:
    await client.mset({jobs.record_of(job_id): "{}" for job_id in job_ids})


def test_all_who_wait_cost_one_call(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(waiting: Waiting, client: Redis) -> None:
        asked: list[int] = []
        mget = client.mget

        async def counted(names: list[str]) -> Any:
            asked.append(len(names))
            return await mget(names)

        monkeypatch.setattr(client, "mget", counted)
        job_ids = await store_jobs(client, 100)
        callers = [
            asyncio.create_task(waiting.until_finished(job_id, FOREVER_SECONDS))
            for job_id in job_ids
        ]
        while len(asked) < 5:
            await asyncio.wait(callers, timeout=0.01)
        assert set(asked) == {100}
        assert calls(stack.redis) <= len(asked)
        await finish(client, job_ids[1:])
        await asyncio.gather(*callers[1:])
        assert not callers[0].done()
        await finish(client, job_ids[:1])
        await callers[0]
        # Nobody waits, so nobody asks.
        assert waiting.rounds
        await waiting.rounds

    run_waiting(stack.redis, 128, test)


def test_several_may_wait_for_one_job_and_each_only_so_long(stack: Stack) -> None:
    async def test(waiting: Waiting, client: Redis) -> None:
        (job_id,) = await store_jobs(client, 1)
        patient = asyncio.create_task(waiting.until_finished(job_id, FOREVER_SECONDS))
        await waiting.until_finished(job_id, 0.05)
        leaving = asyncio.create_task(waiting.until_finished(job_id, FOREVER_SECONDS))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert len(waiting.records) == 1
        await finish(client, [job_id])
        await patient

    run_waiting(stack.redis, 128, test)


def test_above_its_bound_nobody_waits(stack: Stack, row: list[float]) -> None:
    # At most half of the requests at once.
    for settings in ({"MAX_WAITING": "1"}, {"MAX_REQUESTS_AT_ONCE": "3"}):
        api = stack.api(**settings)
        job_id = ask(api, row)["job_id"]
        callers = [stack.waiting(api, job_id) for _ in range(2)]
        over, still_waiting = wait(callers, return_when=FIRST_COMPLETED)
        assert [caller.result().json()["status"] for caller in over] == ["queued"]
        (worker,) = stack.workers()
        assert [caller.result().json()["status"] for caller in still_waiting] == ["done"]
        worker.stop()


@pytest.mark.parametrize("failure", [suspended, killed])
def test_nobody_waits_for_a_redis_that_fails(
    stack: Stack, failure: Callable[[Queue], AbstractContextManager[None]]
) -> None:
    async def test(waiting: Waiting, client: Redis) -> None:
        waiting.deadline_seconds = 0.2
        (job_id,) = await store_jobs(client, 1)
        caller = asyncio.create_task(waiting.until_finished(job_id, FOREVER_SECONDS))
        await asyncio.wait([caller], timeout=0.1)
        with failure(stack.redis):
            await caller

    run_waiting(stack.redis, 128, test)


def test_callers_who_wait_get_the_state_when_the_server_stops(
    stack: Stack, row: list[float]
) -> None:
    server = stack.server()
    api = stack.client(server)
    caller = stack.waiting(api, ask(api, row)["job_id"])
    stack.wait_for_callers()
    server.terminate()
    assert caller.result().json()["status"] == "queued"
    assert server.wait(60) in (0, -15)


# --- the measurement ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("measured")
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    subprocess.run([*command, "--output", str(directory / "measure")], check=True, cwd=ROOT)
    return load_results(directory)


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_controls_do_not(results: Results) -> None:
    assert results.holds
    assert results.counts["changed"] > 0
    assert results.control == {
        "first_answers_stopped": 0,
        "first_answers_suspended": 0,
        "first_answers_killed": 0,
        "changed": 0,
    }
    assert not measure.claim_holds(results.counts | results.control)


@pytest.mark.parametrize(
    "change",
    [
        *({f"first_answers_{name}": 39} for name in measure.SITUATIONS),
        {"second_answers": 1},
        {"second_answers": 0, "accepted": 0},
        {"improved": 0},
        {"worsened": 540},
    ],
)
def test_the_claim_fails_for_other_counts(results: Results, change: dict[str, int]) -> None:
    assert measure.claim_holds(results.counts)
    assert not measure.claim_holds(results.counts | change)


def test_the_improvement_is_that_of_mcnemars_interval() -> None:
    assert measure.lowest_points(540, 15, 1) == pytest.approx(1.16, abs=0.01)
    assert measure.lowest_points(540, 3, 3) < 0
    assert measure.lowest_points(540, 0, 0) == 0
