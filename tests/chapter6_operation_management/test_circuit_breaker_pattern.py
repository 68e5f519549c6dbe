"""circuit_breaker_pattern: real replicas behind a real Envoy with the shipped configuration."""

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import yaml
from sklearn.datasets import load_digits

from chapter6_operation_management.circuit_breaker_pattern.measure.__main__ import (
    ERRORS,
    HERE,
    LIMIT,
    ROOT,
    ejection,
    model_calls,
    over_load,
    prediction,
    proxy,
    replica,
    with_timeout,
)
from tools.measure.load import Run, closed_loop
from tools.measure.results import load as load_results
from tools.measure.server import Server, suspended, wait_until
from tools.mesh.proxy import Proxy, fetch, shipped, without

CLUSTER = "cluster.outbound|8000||predictor"
DEADLINE_SECONDS = 30.0
FALLBACK = {"prediction": None, "fallback": True}
ACCEPTS_FALLBACK = {"x-fallback": "allow"}
ROW = [0.0] * 64


@pytest.fixture(scope="module", autouse=True)
def model() -> None:
    """Trains the model unless it is there already."""
    if not (HERE / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=HERE, check=True)


@pytest.fixture(scope="module")
def pair(model: None) -> Iterator[list[Server]]:
    with ExitStack() as stack:
        yield [stack.enter_context(replica()) for _ in range(2)]


@pytest.fixture
def proxied(pair: list[Server]) -> Iterator[Proxy]:
    with proxy(shipped(HERE), *pair) as running:
        yield running


@pytest.fixture
def client(proxied: Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxied.url, timeout=DEADLINE_SECONDS, trust_env=False) as client:
        yield client


def in_a_loop(url: str, connections: int, count: int) -> Run:
    return asyncio.run(
        closed_loop(
            prediction(url),
            connections=connections,
            count=count,
            deadline_seconds=DEADLINE_SECONDS,
        )
    )


@contextmanager
def all_suspended(replicas: list[Server]) -> Iterator[None]:
    """Suspends the replicas: what they accept meanwhile stays in flight until they continue."""
    with ExitStack() as stack:
        for each in replicas:
            stack.enter_context(suspended(each))
        yield


def patient(config: Any) -> Any:
    """Replaces the timeout of one second, because a busy machine needs more."""
    return with_timeout(config, round(1000 * DEADLINE_SECONDS))


def burst(
    running: Proxy, replicas: list[Server], with_fallback: int, without_fallback: int, refused: int
) -> list[httpx.Response]:
    """Sends all at once; the replicas continue when `refused` are refused and the rest accepted."""
    limits = httpx.Limits(max_connections=None)
    everybody = [ACCEPTS_FALLBACK] * with_fallback + [{}] * without_fallback
    with (
        httpx.Client(
            base_url=running.url, limits=limits, timeout=DEADLINE_SECONDS, trust_env=False
        ) as client,
        ThreadPoolExecutor(len(everybody)) as pool,
    ):
        with all_suspended(replicas):
            sent = [
                pool.submit(client.post, "/predict", json={"data": [ROW]}, headers=headers)
                for headers in everybody
            ]
            wait_until(lambda: sum(future.done() for future in sent) >= refused, "refusals")
            under_way = len(sent) - refused
            wait_until(
                lambda: running.stat(f"{CLUSTER}.upstream_rq_active") == under_way,
                "the rest to be accepted",
            )
        return [future.result() for future in sent]


# Through the proxy -----------------------------------------------------------------------------


def test_every_row_gets_the_prediction_of_the_model(client: httpx.Client) -> None:
    rows = load_digits().data[:32].astype(np.float32)
    session = onnxruntime.InferenceSession(HERE / "models/model.onnx")
    (expected,) = session.run(["probabilities"], {"X": rows})
    answered = client.post("/predict", json={"data": rows.tolist()}).json()["prediction"]
    assert np.allclose(answered, expected, rtol=0, atol=1e-5)
    labels = client.post("/predict/label", json={"data": rows.tolist()}).json()["prediction"]
    assert labels == [str(digit) for digit in expected.argmax(axis=1)]


BAD_BODIES = {
    "not JSON": "{",
    "too narrow": json.dumps({"data": [ROW[1:]]}),
    "NaN": json.dumps({"data": [[*ROW[1:], float("nan")]]}),
    "whiter than white": json.dumps({"data": [[*ROW[1:], 16.1]]}),
}


def test_refusals_of_a_replica_pass_through_the_proxy_and_eject_no_replica(
    client: httpx.Client, proxied: Proxy, pair: list[Server]
) -> None:
    calls = model_calls(pair)
    # More in a row than the number of errors that eject a replica.
    for name, body in [*BAD_BODIES.items()] * ERRORS:
        answer = client.post("/predict", content=body, headers=ACCEPTS_FALLBACK)
        assert (name, answer.status_code) == (name, 422)
        assert answer.json()["detail"]
    large = client.post("/predict", content=b" " * 300_000)
    assert (large.status_code, large.json()) == (
        413,
        {"detail": "the body is larger than 65536 bytes"},
    )
    assert client.get("/nowhere").status_code == 404
    assert model_calls(pair) == calls
    assert proxied.stat(f"{CLUSTER}.outlier_detection.ejections_enforced_total") == 0
    assert proxied.stat(f"{CLUSTER}.upstream_rq_retry") == 0


def test_a_busy_replica_is_healthy_and_ready(pair: list[Server]) -> None:
    def calls() -> int:
        return model_calls(pair[:1])

    before = calls()
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(in_a_loop, pair[0].url, 100, 100)
        wait_until(lambda: calls() > before, "a prediction")
        assert fetch(f"{pair[0].url}/health")["status"] == "ok"
        assert fetch(f"{pair[0].url}/ready") == {"status": "ready"}
        assert calls() - before < 100
        assert load.result().statuses == {200: 100}


# The limit -------------------------------------------------------------------------------------


def test_requests_above_the_limit_are_refused_and_never_reach_a_replica(
    pair: list[Server],
) -> None:
    calls = model_calls(pair)
    with proxy(patient(shipped(HERE)), *pair) as running:
        answers = burst(running, pair, 0, LIMIT + 24, refused=24)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert Counter(answer.status_code for answer in answers) == {200: LIMIT, 503: 24}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        assert {answer.headers["content-type"] for answer in refused} == {"application/json"}
        assert all("more requests at once" in answer.json()["detail"] for answer in refused)
        assert running.stat(f"{CLUSTER}.upstream_rq_active_overflow") + running.stat(
            f"{CLUSTER}.upstream_rq_pending_overflow"
        ) == len(refused)
        assert running.stat(f"{CLUSTER}.upstream_rq_retry") == 0
        assert running.stat(f"{CLUSTER}.outlier_detection.ejections_enforced_total") == 0
    assert model_calls(pair) - calls == LIMIT


def test_only_callers_that_accept_the_fallback_get_it(pair: list[Server]) -> None:
    with proxy(patient(shipped(HERE)), *pair) as running:
        answers = burst(running, pair, 30, 30, refused=60 - LIMIT)
    accepting, others = answers[:30], answers[30:]
    served = [answer for answer in answers if answer.headers.get("x-fallback") == "served"]
    assert served
    assert {answer.status_code for answer in accepting} == {200}
    assert [answer for answer in accepting if answer.json() == FALLBACK] == served
    assert 503 in {answer.status_code for answer in others}
    assert sum("prediction" in answer.json() for answer in answers) - len(served) == LIMIT


def test_without_the_limit_every_request_reaches_a_replica(
    pair: list[Server],
) -> None:
    calls = model_calls(pair)
    with proxy(patient(without(HERE, "connectionPool")), *pair) as running:
        answers = burst(running, pair, 0, LIMIT + 24, refused=0)
    assert {answer.status_code for answer in answers} == {200}
    assert model_calls(pair) - calls == LIMIT + 24


def test_the_limit_allows_two_concurrent_requests_per_replica_at_full_scale() -> None:
    autoscaler = yaml.safe_load((HERE / "manifests/hpa.yml").read_text("utf-8"))
    assert autoscaler["spec"]["maxReplicas"] * 2 == LIMIT


# A replica that fails --------------------------------------------------------------------------


def test_a_failing_replica_is_ejected_after_exactly_five_errors_and_comes_back(
    pair: list[Server],
) -> None:
    found = ejection(patient(shipped(HERE)), pair[0], watch_seconds=12)
    assert found["errors_until_ejection"] == ERRORS
    assert found["client_errors_while_ejected"] == 0
    assert found["returned_after_seconds"] >= 5


def test_without_detection_a_failing_replica_keeps_failing(pair: list[Server]) -> None:
    found = ejection(patient(without(HERE, "outlierDetection")), pair[0])
    assert found["errors_until_ejection"] > ERRORS
    # The retry still hides the errors from callers.
    assert found["client_errors_while_ejected"] == 0


def test_without_retries_callers_see_exactly_the_errors_before_the_ejection(
    pair: list[Server],
) -> None:
    found = ejection(patient(without(HERE, "retries")), pair[0], watch_seconds=1)
    assert found["errors_until_ejection"] == ERRORS
    assert found["client_errors_while_ejected"] == ERRORS


@contextmanager
def under_load(steady: Server, connections: int) -> Iterator[tuple[Proxy, Server, Future[Run]]]:
    """Runs a second replica under load; yields the proxy, that replica and the run of 400."""
    with (
        ThreadPoolExecutor(1) as pool,
        replica() as other,
        proxy(patient(shipped(HERE)), steady, other) as running,
    ):
        load = pool.submit(in_a_loop, running.url, connections, 400)
        wait_until(lambda: fetch(f"{other.url}/calls") >= 20, "20 predictions")
        yield running, other, load


def test_a_killed_replica_costs_no_caller_an_error(pair: list[Server]) -> None:
    with under_load(pair[0], 4) as (running, other, load):
        other.kill()
        assert load.result().statuses == {200: 400}
        # More than one if the load lasts longer than an ejection.
        assert running.stat(f"{CLUSTER}.outlier_detection.ejections_enforced_consecutive_5xx") >= 1


def test_a_replica_that_is_stopped_under_load_loses_no_request(pair: list[Server]) -> None:
    with under_load(pair[0], 8) as (_, other, load):
        other.terminate()
        assert load.result().statuses == {200: 400}
        assert other.wait(DEADLINE_SECONDS) in {0, -signal.SIGTERM}


def test_without_replicas_the_response_says_so_or_is_the_fallback(pair: list[Server]) -> None:
    with ExitStack() as stack:
        gone = [stack.enter_context(replica("measure.baselines:failing")) for _ in range(2)]
        running = stack.enter_context(proxy(shipped(HERE), *gone))
        for each in gone:
            each.kill()
        client = stack.enter_context(httpx.Client(base_url=running.url, trust_env=False))
        for _ in range(2 * ERRORS):
            refused = client.post("/predict", json={"data": [ROW]})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json() == {"detail": "no replica can be reached"}
            served = client.post("/predict", json={"data": [ROW]}, headers=ACCEPTS_FALLBACK)
            assert (served.status_code, served.json()) == (200, FALLBACK)


def test_replicas_that_hang_cost_a_caller_the_timeout_and_are_not_retried(
    pair: list[Server], proxied: Proxy, client: httpx.Client
) -> None:
    with all_suspended(pair):
        assert client.post("/predict", json={"data": [ROW]}).status_code == 504
        served = client.post("/predict", json={"data": [ROW]}, headers=ACCEPTS_FALLBACK)
    assert (served.status_code, served.json()) == (200, FALLBACK)
    assert proxied.stat(f"{CLUSTER}.upstream_rq_timeout") == 2
    assert proxied.stat(f"{CLUSTER}.upstream_rq_retry") == 0


def test_the_diagram_shows_the_limit_for_all_replicas_together() -> None:
    _, _, diagram = (HERE / "README.md").read_text("utf-8").partition("```mermaid")
    assert f"limit: {LIMIT} requests<br>together" in diagram.partition("```")[0]


# The measurement -------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_measurement_holds(tmp_path: Path) -> None:
    module = "chapter6_operation_management.circuit_breaker_pattern.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / "measure")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.holds
    assert results.counts["refused"] > 0 == results.control["refused"]
    assert results.control["errors_until_ejection"] > ERRORS
    assert results.control["client_errors_while_ejected"] > 0


def test_the_series_relates_the_responses_in_time_to_the_capacity() -> None:
    capacity = [{"per_second": 100.0}]
    arms = {"limited": 99.0, "unlimited": 15.0}
    overload = {arm: [{"goodput_per_second": value}] for arm, value in arms.items()}
    calm = {arm: [{"goodput_per_second": 50.0}] for arm in arms}
    measured = {3.0: overload | {"capacity": capacity}, 0.5: calm | {"capacity": capacity}}
    assert over_load(measured) == {
        "load_percent": [50, 300],
        "goodput_percent": [50, 99],
        "unlimited_goodput_percent": [50, 15],
    }
