"""prediction_cache_pattern: a real Redis, which is also killed, suspended and full of nonsense."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from redis import Redis
from redis.asyncio import RedisCluster

from chapter4_serving_patterns.prediction_cache_pattern.app import parallel
from chapter4_serving_patterns.prediction_cache_pattern.app.cache import LEASE, Cache, Found
from chapter4_serving_patterns.prediction_cache_pattern.app.keys import key_of
from chapter4_serving_patterns.prediction_cache_pattern.app.model import Model
from chapter4_serving_patterns.prediction_cache_pattern.app.schema import FEATURES
from chapter4_serving_patterns.prediction_cache_pattern.measure.counts import (
    claim_holds,
    write_models,
)
from chapter4_serving_patterns.prediction_cache_pattern.measure.processes import (
    HERE,
    PACKAGE,
    PATIENT,
    ROOT,
    run_api,
    run_redis,
    switch,
)
from chapter4_serving_patterns.prediction_cache_pattern.measure.times import RATIOS, figures_of
from chapter4_serving_patterns.prediction_cache_pattern.train import model as trainer
from tools.measure.results import Results
from tools.measure.results import load as load_results
from tools.measure.server import Server, wait_until
from tools.measure.servers import RedisServer, run_uvicorn
from tools.run.ports import free_port

VALUE_BYTES = 8
KEYS = [b"key %d" % number for number in range(3)]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def rows() -> list[list[float]]:
    found: list[list[float]] = trainer.load()[2].tolist()
    return found


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with run_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> Iterator[RedisServer]:
    """Returns an empty Redis, which may be killed and suspended."""
    with Redis.from_url(shared_redis.url) as client:
        client.flushall()
        client.config_resetstat()
        client.config_set("maxmemory", 64 * 1024**2)
    yield shared_redis
    if shared_redis.is_alive():
        shared_redis.process.send_signal(signal.SIGCONT)
    else:
        shared_redis.start()


@pytest.fixture
def client(redis: RedisServer) -> Iterator[Any]:
    with Redis.from_url(redis.url) as client:
        yield client


# --- the key --------------------------------------------------------------------------------------


def test_rows_that_are_the_same_to_the_model_have_the_same_key(rows: list[list[float]]) -> None:
    row = [1.0, *rows[0][1:]]
    for written in ("1", "1.0", "1e0", "0.1e1", "1.00000001"):
        same = [json.loads(written), *row[1:]]
        assert key_of(same, "model") == key_of(row, "model"), written
    assert key_of([-0.0, *row[1:]], "model") == key_of([0.0, *row[1:]], "model")


def test_other_rows_other_orders_and_other_models_have_other_keys(rows: list[list[float]]) -> None:
    row = rows[0]
    others = [[float(np.nextafter(np.float32(value), np.float32(16))) for value in row], row[::-1]]
    for index in range(FEATURES):
        others.append([16 - value if index == at else value for at, value in enumerate(row)])
    keys = {key_of(other, model) for other in [row, *rows[1:], *others] for model in ("a", "b")}
    assert len(keys) == 2 * (1 + len(rows) - 1 + len({*map(tuple, others)} - {tuple(row)}))


# --- the cache ------------------------------------------------------------------------------------


class Computing:
    """Computes values, and notes for which keys; the first calls can fail or wait."""

    def __init__(self, *, failures: int = 0) -> None:
        self.calls: list[list[bytes]] = []
        self.failures = failures
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, keys: list[bytes]) -> list[bytes]:
        self.calls.append(keys)
        await self.may_go_on.wait()
        if self.failures:
            self.failures -= 1
            raise ValueError("it cannot be computed")
        return [key.ljust(VALUE_BYTES) for key in keys]

    @property
    def keys(self) -> Counter[bytes]:
        return Counter(key for keys in self.calls for key in keys)


@asynccontextmanager
async def cache_of(redis_url: str, **changes: Any) -> AsyncIterator[Cache]:
    settings: dict[str, Any] = {
        "max_connections": 100,
        "deadline_seconds": 60,
        "lease_seconds": 60,
        "ttl_seconds": 3_600,
        "value_bytes": VALUE_BYTES,
    }
    cache = Cache(redis_url, **settings | changes)
    yield cache
    await cache.redis.aclose()


async def until(condition: Callable[[], bool]) -> None:
    """Polls a condition until it is true."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_each_missing_value_is_computed_once_in_one_call(redis: RedisServer, client: Any) -> None:
    async def test() -> None:
        async with cache_of(redis.url) as cache:
            compute = Computing()
            found = await cache.get_many([KEYS[0], KEYS[1], KEYS[0]], compute)
            assert found.values == [b"key 0   ", b"key 1   ", b"key 0   "]
            assert found.cache_status == 'redis; fwd=miss; stored; detail="hits: 0 of 3"'
            found = await cache.get_many(KEYS, compute)
            assert found.cache_status == 'redis; fwd=miss; stored; detail="hits: 2 of 3"'
            found = await cache.get_many(KEYS, compute)
            assert found.cache_status == 'redis; hit; detail="hits: 3 of 3"'
            assert compute.calls == [KEYS[:2], KEYS[2:]]
            state = await cache.state()
            assert (state.hits, state.misses, state.computed, state.stored) == (5, 4, 3, 3)
            assert (state.keys, state.evicted, state.max_bytes) == (3, 0, 64 * 1024**2)

    run(test)
    assert client.info("commandstats")["cmdstat_mget"]["calls"] == 3


def test_a_value_that_expired_is_computed_again(redis: RedisServer, client: Any) -> None:
    async def test() -> None:
        async with cache_of(redis.url, ttl_seconds=0.05) as cache:
            compute = Computing()
            await cache.get_many(KEYS, compute)
            await until(lambda: client.dbsize() == 0)
            found = await cache.get_many(KEYS, compute)
            assert found.counts["hits"] == 0
            assert compute.calls == [KEYS, KEYS]

    run(test)


FOREIGN: dict[str, Callable[[Any], object]] = {
    "another text": lambda client: client.set(KEYS[0], "something else"),
    "nothing": lambda client: client.set(KEYS[0], b""),
    "a value that was cut off": lambda client: client.set(KEYS[0], b"key 0  "),
    "a list": lambda client: client.rpush(KEYS[0], b"key 0   "),
    "a lease that does not expire": lambda client: client.set(KEYS[0], LEASE + b"nobody"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_not_a_value_is_replaced(redis: RedisServer, client: Any, name: str) -> None:
    FOREIGN[name](client)

    async def test() -> None:
        async with cache_of(redis.url, lease_seconds=0.1) as cache:
            compute = Computing()
            for _ in range(2):
                found = await cache.get_many(KEYS[:1], compute)
                assert found.values == [b"key 0   "]
            assert found.counts["hits"] == 1
            assert compute.calls == [KEYS[:1]]

    run(test)
    assert client.get(KEYS[0]) == b"key 0   "


def test_of_all_calls_at_the_same_time_in_two_processes_one_computes(redis: RedisServer) -> None:
    async def test() -> None:
        async with cache_of(redis.url) as one, cache_of(redis.url) as other:
            compute = Computing()
            compute.may_go_on.clear()
            calls = [
                asyncio.create_task(cache.get_many(keys, compute))
                for keys in (KEYS, KEYS[::-1], KEYS[1:], KEYS[:1])
                for cache in (one, other)
                for _ in range(5)
            ]
            await until(lambda: compute.calls != [])
            compute.may_go_on.set()
            found: list[Found] = await asyncio.gather(*calls)
            assert set(compute.keys.values()) == {1}
            assert set(compute.keys) == set(KEYS)
            for values in (each.values for each in found):
                assert values in (
                    [key.ljust(VALUE_BYTES) for key in keys]
                    for keys in (KEYS, KEYS[::-1], KEYS[1:], KEYS[:1])
                )
            assert any("collapsed" in each.cache_status for each in found)

    run(test)


def test_a_call_that_fails_fails_no_other(redis: RedisServer, client: Any) -> None:
    async def test() -> None:
        async with cache_of(redis.url) as one, cache_of(redis.url) as other:
            compute = Computing(failures=1)
            compute.may_go_on.clear()
            calls = [asyncio.create_task(one.get_many(KEYS, compute))]
            await until(lambda: len(compute.calls) == 1)
            calls += [asyncio.create_task(one.get_many(KEYS[:1], compute)) for _ in range(3)]
            calls += [asyncio.create_task(other.get_many(KEYS[:2], compute)) for _ in range(3)]
            compute.may_go_on.set()
            first, *others = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(first, ValueError)
            assert all(isinstance(found, Found) for found in others)
            assert compute.keys == {KEYS[0]: 2, KEYS[1]: 2, KEYS[2]: 1}
            assert one.computing == other.computing == {}

    run(test)
    assert client.exists(KEYS[2]) == 0


@pytest.mark.parametrize("leaver", [0, 1])
def test_a_caller_that_leaves_takes_nobody_along(redis: RedisServer, leaver: int) -> None:
    async def test() -> None:
        async with cache_of(redis.url, lease_seconds=0.1) as cache:
            compute = Computing()
            compute.may_go_on.clear()
            calls = [asyncio.create_task(cache.get_many(KEYS, compute)) for _ in range(3)]
            await until(lambda: len(compute.calls) == 1)
            calls[leaver].cancel()
            compute.may_go_on.set()
            results = await asyncio.gather(*calls, return_exceptions=True)
            del results[leaver]
            values = [key.ljust(VALUE_BYTES) for key in KEYS]
            assert [found.values for found in cast("list[Found]", results)] == [values] * 2
            assert cache.computing == {}

    run(test)


def test_both_ways_to_look_up_give_the_same_values(redis: RedisServer) -> None:
    async def test() -> None:
        async with cache_of(redis.url) as cache:
            compute = Computing()
            found = await parallel.get_many(cache, [*KEYS, KEYS[0]], compute)
            assert found.values == [key.ljust(VALUE_BYTES) for key in (*KEYS, KEYS[0])]
            assert found.cache_status == 'redis; fwd=miss; stored; detail="hits: 0 of 4"'
            assert (await cache.get_many(KEYS, compute)).counts["hits"] == 3
            found = await parallel.get_many(cache, KEYS, compute)
            assert found.cache_status == 'redis; hit; detail="hits: 3 of 3"'
            await until(lambda: not parallel.unawaited)
            assert compute.calls == [KEYS, KEYS]

    run(test)


def test_computations_for_nobody_do_not_pile_up(redis: RedisServer) -> None:
    async def test() -> None:
        async with cache_of(redis.url) as cache:
            compute = Computing()
            await cache.get_many(KEYS, compute)
            compute.may_go_on.clear()
            for _ in range(parallel.MAX_UNAWAITED):
                await parallel.get_many(cache, KEYS, compute)
            last = asyncio.create_task(parallel.get_many(cache, KEYS, compute))
            await until(lambda: len(compute.calls) == 2 + parallel.MAX_UNAWAITED)
            assert len(parallel.unawaited) == parallel.MAX_UNAWAITED
            compute.may_go_on.set()
            assert (await last).counts["hits"] == 3
            await until(lambda: not parallel.unawaited)

    run(test)


def test_a_cluster_needs_another_client_and_nothing_else(tmp_path: Path) -> None:
    async def test(url: str) -> None:
        async with cache_of(url) as cache, RedisCluster.from_url(url) as cluster:
            own = cache.redis
            cache.redis = cast("Any", cluster)
            vars(cluster)["mget"] = cluster.mget_nonatomic
            compute = Computing()
            assert (await cache.get_many(KEYS, compute)).counts["stored"] == 3
            assert (await cache.get_many(KEYS, compute)).counts["hits"] == 3
            cache.redis = own

    # Nodes of a cluster also talk at a port that is higher by 10,000.
    port = free_port(but_not=range(55_536, 65_536))
    with run_redis(tmp_path, "--cluster-enabled", "yes", port=port) as server:
        with Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
            wait_until(lambda: client.cluster("INFO")["cluster_state"] == "ok", "the cluster")
        asyncio.run(test(server.url))


# --- the API --------------------------------------------------------------------------------------


class Stack:
    """Redis, and APIs that a test starts."""

    def __init__(self, directory: Path, redis: RedisServer, models: list[Path], stack: ExitStack):
        self.directory = directory
        self.redis = redis
        self.models = models
        self.stack = stack
        self.servers: list[Server] = []

    def api(self, model: int = 0, **settings: str) -> httpx.Client:
        """Starts the shipped API with a model, and settings that suit a busy machine."""
        env = {
            "REDIS_URL": self.redis.url,
            "MODEL_DIRECTORY": str(self.models[model]),
            **PATIENT,
            **settings,
        }
        self.servers.append(
            self.stack.enter_context(
                run_uvicorn(
                    f"{PACKAGE}.app.main:app",
                    cwd=ROOT,
                    env=env,
                    log=self.directory / f"{len(self.servers)}.log",
                )
            )
        )
        server = self.servers[-1]
        return self.stack.enter_context(httpx.Client(base_url=server.url, timeout=60))


@pytest.fixture
def stack(tmp_path: Path, redis: RedisServer, models: list[Path]) -> Iterator[Stack]:
    with ExitStack() as exits:
        yield Stack(tmp_path, redis, models, exits)


def predict(api: httpx.Client, rows: list[list[float]], path: str = "/predict") -> tuple[str, Any]:
    """Returns the Cache-Status and the prediction."""
    answer = api.post(path, json={"data": rows})
    assert answer.status_code == 200, answer.text
    return answer.headers["cache-status"], answer.json()["prediction"]


MISS, HIT, BYPASS = (
    'redis; fwd=miss; stored; detail="hits: 0 of 1"',
    'redis; hit; detail="hits: 1 of 1"',
    'redis; fwd=bypass; detail="hits: 0 of 1"',
)


def test_a_second_request_hits_and_has_the_same_answer(
    stack: Stack, rows: list[list[float]], client: Any
) -> None:
    api, other = stack.api(), stack.api()
    status, prediction = predict(api, rows[:1])
    assert status == MISS
    assert predict(api, rows[:1]) == (HIT, prediction)
    assert predict(other, rows[:1]) == (HIT, prediction)
    model = Model(stack.models[0], FEATURES)
    assert np.allclose(prediction, model.predict(rows[:1]), atol=1e-6)
    assert predict(other, rows[:1], "/predict/label") == (HIT, model.predict_labels(rows[:1]))
    status, predictions = predict(api, [rows[1], rows[0], rows[1]])
    assert status == 'redis; fwd=miss; stored; detail="hits: 1 of 3"'
    assert np.allclose(predictions, model.predict([rows[1], rows[0], rows[1]]), atol=1e-6)
    # The model's sample is the first row.
    assert api.get("/predict/test").headers["cache-status"] == HIT
    assert api.get("/predict/test/label").headers["cache-status"] == HIT
    found = api.get("/cache").json()
    assert (found["hits"], found["misses"], found["computed"], found["keys"]) == (4, 3, 2, 2)
    assert client.dbsize() == 2


def test_numbers_hit_however_they_are_written(stack: Stack, rows: list[list[float]]) -> None:
    api = stack.api()
    assert predict(api, [[1, *rows[0][1:]]])[0] == MISS
    rest = json.dumps(rows[0][1:])[1:]
    for one in ("1", "1.0", "1e0", "10E-1"):
        answer = api.post("/predict", content=f'{{"data": [[{one}, {rest}]}}')
        assert answer.headers["cache-status"] == HIT, one


def test_what_is_refused_never_reaches_redis(
    stack: Stack, rows: list[list[float]], client: Any
) -> None:
    api = stack.api()
    row = rows[0]
    bodies: list[Any] = [
        *({}, {"data": []}, {"data": [[]]}, {"data": [row[1:]]}, {"data": [row, row[1:]]}),
        *({"data": [[*row, 0]]}, {"data": row}, {"data": [row] * 33}, {"data": None}, [row]),
        *({"data": [row], "more": 1}, {"dat": [row]}, {"data": {"0": row}}, {"data": "0000"}),
        *({"data": [[value, *row[1:]]]} for value in (True, "1", None, -0.1, 16.1, 1e39, [1])),
    ]
    texts = [json.dumps(body) for body in bodies]
    texts += [texts[-1].replace("[1]", value) for value in ("NaN", "Infinity", "-1e999")]
    for path in ("/predict", "/predict/label"):
        for text in [*texts, "", "{"]:
            assert api.post(path, content=text).status_code == 422, text[:100]
        assert api.post(path, content=b" " * 300_000).status_code == 413
    assert client.dbsize() == 0
    assert not client.info("commandstats").keys() & {"cmdstat_mget", "cmdstat_set"}
    assert predict(api, [row])[0] == MISS


def test_redis_may_be_killed_and_come_back_empty(stack: Stack, rows: list[list[float]]) -> None:
    api = stack.api()
    _, prediction = predict(api, rows[:1])
    stack.redis.kill()
    for _ in range(3):
        assert predict(api, rows[:1]) == (BYPASS, prediction)
    assert api.get("/ready").status_code == 200
    found = api.get("/cache").json()
    assert (found["bypassed"], found["computed"], found["keys"]) == (3, 4, None)
    stack.redis.start()
    # Redis is asked again after a pause.
    wait_until(lambda: predict(api, rows[:1])[0] == MISS, "a miss")
    assert predict(api, rows[:1]) == (HIT, prediction)


def test_an_api_that_starts_without_redis_answers(stack: Stack, rows: list[list[float]]) -> None:
    stack.redis.kill()
    api = stack.api()
    assert predict(api, rows[:1])[0] == BYPASS
    assert api.get("/ready").status_code == 200


def test_a_redis_that_hangs_is_left_alone(stack: Stack, rows: list[list[float]]) -> None:
    api = stack.api(REDIS_DEADLINE_SECONDS="0.05")
    wait_until(lambda: predict(api, rows[:1])[0] == HIT, "a hit")
    stack.redis.process.send_signal(signal.SIGSTOP)
    try:
        # These answers come while Redis hangs, so the API did not wait for it.
        assert {predict(api, [row])[0] for row in rows[:20]} == {BYPASS}
        assert api.get("/cache").json()["bytes"] is None
    finally:
        stack.redis.process.send_signal(signal.SIGCONT)
    wait_until(lambda: predict(api, rows[:1])[0] == HIT, "a hit")
    log = (stack.directory / "0.log").read_text()
    assert re.search(r"WARNING:\s+Redis is left alone for 1 s: TimeoutError", log)


def test_a_redis_that_accepts_no_writes_still_has_hits(
    stack: Stack, rows: list[list[float]], client: Any
) -> None:
    api = stack.api()
    predict(api, rows[:1])
    client.replicaof("127.0.0.1", "1")
    try:
        for _ in range(3):
            assert predict(api, rows[1:2])[0] == 'redis; fwd=miss; detail="hits: 0 of 1"'
            assert predict(api, rows[:1])[0] == HIT
    finally:
        client.replicaof("NO", "ONE")
    assert predict(api, rows[1:2])[0] == MISS


def test_the_prediction_of_a_replica_that_dies_is_computed_by_another(
    stack: Stack, rows: list[list[float]], client: Any, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    model = stack.models[0]
    env = PATIENT | {"LEASE_SECONDS": "0.5"}
    with (
        run_api(tmp_path, stack.redis, model, env=env) as dying,
        ThreadPoolExecutor() as threads,
    ):
        switch(dying, model, hold=hold, deadline_seconds=60)
        body = {"data": rows[:1]}
        lost = threads.submit(httpx.post, f"{dying.url}/predict", json=body, timeout=60)
        wait_until(lambda: client.dbsize() == 1, "the lease")
        dying.kill()
        assert isinstance(lost.exception(), httpx.TransportError)
    status, _ = predict(stack.api(LEASE_SECONDS="0.5"), rows[:1])
    assert status == MISS


def test_another_model_has_its_own_predictions(stack: Stack, rows: list[list[float]]) -> None:
    old, new = stack.api(), stack.api(1)
    _, of_old = predict(old, rows[:1])
    status, of_new = predict(new, rows[:1])
    assert status == MISS
    assert not np.allclose(of_old, of_new, atol=1e-3)
    assert predict(old, rows[:1]) == (HIT, of_old)
    assert predict(new, rows[:1]) == (HIT, of_new)


def test_looking_up_and_computing_at_the_same_time_computes_everything(
    stack: Stack, rows: list[list[float]]
) -> None:
    api = stack.api(LOOKUP="parallel")
    status, prediction = predict(api, rows[:1])
    assert status == MISS
    for _ in range(5):
        assert predict(api, rows[:1]) == (HIT, prediction)
    assert api.get("/cache").json()["computed"] == 6


# --- the measurement ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    directory = tmp_path_factory.mktemp("measured")
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    subprocess.run([*command, "--output", str(directory / "measure")], check=True, cwd=ROOT)
    return load_results(directory)


@pytest.mark.budget("measure --quick")
def test_the_claim_holds(results: Results) -> None:
    assert results.holds
    assert set(results.counts) == set(load_results(HERE).counts)


CONTROL = {
    "rows_computed": 2_000,
    "computed_at_once": 40,
    "replicas_computing_at_once": 2,
    "old_answers": 100,
    "computed_parallel": 100,
    "failed_without_redis": 200,
}


def test_every_control_is_red(results: Results) -> None:
    assert {name: results.control[name] for name in CONTROL} == CONTROL
    assert results.control["bytes_above_bound"] > 2 * 1024**2
    assert set(results.control) == {*CONTROL, "bytes_above_bound"}


@pytest.mark.parametrize("name", [*CONTROL, "bytes_above_bound"])
def test_the_claim_fails_with_the_count_of_a_control(results: Results, name: str) -> None:
    assert claim_holds(results.counts)
    assert not claim_holds(results.counts | {name: results.control[name]})


def test_the_ratios_are_those_of_each_round() -> None:
    measured = {name: [2.0, 40.0, 6.0] for pair in RATIOS.values() for name in pair}
    measured["hit_p50_ms"] = [1.0, 2.0, 3.0]
    figures = figures_of(measured)
    assert figures["hit_p50_ms"] == 2
    assert figures["hit_ratio_to_miss"] == 0.5
    assert figures["distinct_traffic_ratio"] == 1
