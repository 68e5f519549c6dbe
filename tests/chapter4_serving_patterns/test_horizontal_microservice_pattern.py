"""horizontal_microservice_pattern: real services that hang, die and answer wrongly, and spans."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Event, Thread
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.responses import StreamingResponse
from starlette.types import Message, Scope

from chapter4_serving_patterns.horizontal_microservice_pattern.measure.__main__ import (
    QUICK_MARGIN_SECONDS,
    targets_of,
)
from chapter4_serving_patterns.horizontal_microservice_pattern.measure.baselines import (
    best_of_the_rest,
)
from chapter4_serving_patterns.horizontal_microservice_pattern.measure.counts import count_all
from chapter4_serving_patterns.horizontal_microservice_pattern.measure.images import (
    count_images_of_one_update,
)
from chapter4_serving_patterns.horizontal_microservice_pattern.measure.processes import (
    BODY,
    HERE,
    PATIENT,
    Services,
    run_proxy,
    run_service,
    run_services,
    traced_by,
    urls_of,
)
from chapter4_serving_patterns.horizontal_microservice_pattern.proxy import tracing
from chapter4_serving_patterns.horizontal_microservice_pattern.proxy.calls import Reply
from chapter4_serving_patterns.horizontal_microservice_pattern.proxy.fan_out import labels_of
from chapter4_serving_patterns.horizontal_microservice_pattern.train.iris import LABELS
from tools.measure.results import MEETS
from tools.measure.server import Server, ServerError, suspended, wait_until
from tools.measure.services import copy_of, start
from tools.measure.spans import receiving

# Only what hangs is late, however busy the machine is.
SHORT = {"DEADLINE_SECONDS": "2"}
NOWHERE = "http://127.0.0.1:9"
LABELLED = {"prediction": ["setosa", "virginica"]}
UNSURE = ["setosa", None]


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    """Trains the models unless they are there already."""
    if not (HERE / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=HERE, check=True)


@pytest.fixture(scope="module")
def services(models: None) -> Iterator[Services]:
    with run_services() as running:
        yield running


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[httpx.Client]:
    with run_proxy(urls_of(services), "", PATIENT) as server, client_of(server) as client:
        yield client


def client_of(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60, trust_env=False)


def ask(client: httpx.Client, path: str = "/predict/label") -> Any:
    answer = client.post(path, content=BODY)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- whole answers --------------------------------------------------------------------------------


def test_each_service_answers_for_every_row_and_says_how_long_it_took(
    client: httpx.Client,
) -> None:
    answer = client.post("/predict", content=BODY)
    assert [*answer.json()] == LABELS
    for of_service in answer.json().values():
        assert [sum(pair) for pair in of_service["prediction"]] == pytest.approx([1, 1])
    timing = answer.headers["server-timing"]
    assert re.sub(r"\d+\.\d", "1.0", timing) == ", ".join(f"{name};dur=1.0" for name in LABELS)
    assert ask(client) == LABELLED


def test_the_samples_of_the_services_and_of_the_proxy_are_the_same(client: httpx.Client) -> None:
    of_services, of_proxy = (client.get(f"/predict/{how}/test").json() for how in ("get", "post"))
    assert of_services == of_proxy
    assert [*of_proxy] == LABELS


def test_a_stream_has_a_line_for_each_service(client: httpx.Client) -> None:
    whole = ask(client, "/predict")
    with client.stream("POST", "/predict/stream", content=BODY) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.iter_lines()]
    assert len(lines) == len(LABELS)
    assert {name: value for line in lines for name, value in line.items()} == whole


def test_a_stream_does_not_wait_for_the_slowest(services: Services) -> None:
    with run_proxy(urls_of(services), "", PATIENT) as server, client_of(server) as client:
        ask(client)
        with (
            suspended(services["setosa"]),
            client.stream("POST", "/predict/stream", content=BODY) as answer,
        ):
            arriving = answer.iter_lines()
            first = {name for _ in range(2) for name in json.loads(next(arriving))}
        assert first == {"versicolor", "virginica"}


# --- partial answers ------------------------------------------------------------------------------


def test_a_service_that_hangs_dies_and_comes_back_is_missing_until_then() -> None:
    with (
        run_services() as services,
        run_proxy(urls_of(services), "", SHORT) as server,
        client_of(server) as client,
    ):
        ask(client)
        hung = services["virginica"]
        with suspended(hung):
            late = {"virginica": "no answer within 2 seconds"}
            assert ask(client) == {"prediction": UNSURE, "missing": late}
            assert ask(client, "/predict").keys() == {"setosa", "versicolor", "missing"}
            assert client.get("/health/all").json()["virginica"] == late["virginica"]
        wait_until(lambda: bool(ask(client) == LABELLED), "the service to go on")
        hung.kill()
        gone = {"virginica": "out of reach"}
        assert ask(client) == {"prediction": UNSURE, "missing": gone}
        assert client.get("/ready").json() == {"setosa": "ok", "versicolor": "ok"} | gone
        port = int(hung.url.rpartition(":")[2])
        with run_service("virginica", port=port):
            assert ask(client) == LABELLED


def test_without_any_service_there_is_no_answer_and_the_proxy_is_not_ready() -> None:
    urls = dict.fromkeys(LABELS, NOWHERE)
    missing = dict.fromkeys(LABELS, "out of reach")
    with run_proxy(urls) as server, client_of(server) as client:
        for path in ("/predict", "/predict/label"):
            refused = client.post(path, content=BODY)
            expected = {"detail": "no service has answered", "missing": missing}
            assert (refused.status_code, refused.json()) == (503, expected)
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["server-timing"].count('desc="no answer"') == 3
        # A stream has begun before the first service answers.
        lines = client.post("/predict/stream", content=BODY).text.splitlines()
        said = [json.loads(line)["missing"] for line in lines]
        assert {name: reason for line in said for name, reason in line.items()} == missing
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, missing)
        alive = client.get("/health/all")
        assert (alive.status_code, alive.json()) == (200, missing)


Answering = Callable[[Any], None]


@contextmanager
def scripted(answer: Answering) -> Iterator[str]:
    """Runs a service that reads a request and does with the connection what it likes."""

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            answer(self)

    class Scripted(ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """The proxy may have gone."""

    with Scripted(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def read_request(handler: Any) -> bool:
    """Reads a request; tells whether there was one."""
    length = 0
    first = handler.rfile.readline()
    for line in iter(handler.rfile.readline, b"\r\n"):
        if not line:
            return False
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    handler.rfile.read(length)
    return bool(first)


def head(status: str, length: int, *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


def content(rows: int, value: str = "0.5") -> bytes:
    return f'{{"prediction": [{", ".join([f"[0.5, {value}]"] * rows)}]}}'.encode()


def whole(status: str, body: bytes, *more: str) -> Answering:
    def answer(handler: Any) -> None:
        read_request(handler)
        handler.wfile.write(head(status, len(body), *more) + body)

    return answer


def half(handler: Any) -> None:
    read_request(handler)
    handler.wfile.write(head("200 OK", 100) + b'{"prediction"')


def byte_by_byte(handler: Any) -> None:
    read_request(handler)
    never = Event()
    for byte in head("200 OK", 1_000) + content(2):
        handler.wfile.write(bytes([byte]))
        never.wait(0.05)


def too_large(handler: Any) -> None:
    read_request(handler)
    handler.wfile.write(head("200 OK", 10_000_000))
    for _ in range(10):
        handler.wfile.write(b" " * 1_000_000)


WRONG: dict[str, tuple[Answering, str]] = {
    "a 500": (whole("500 Oops", b"{}"), "responded with status 500"),
    "a redirect": (
        whole("302 Found", b"", "location: http://127.0.0.1:9/"),
        "responded with status 302",
    ),
    "half a body": (half, "did not finish its answer"),
    "another number of rows": (whole("200 OK", content(3)), "3 predictions for 2 rows"),
    "NaN": (whole("200 OK", content(2, "NaN")), "the answer has another form"),
    "three probabilities": (
        whole("200 OK", content(2, "0, 0.5")),
        "3 probabilities for 2 labels",
    ),
    "no JSON": (whole("200 OK", b"<html>"), "the answer has another form"),
    "10 MB": (too_large, "the answer is too large"),
    "byte by byte": (byte_by_byte, "no answer within 2 seconds"),
    "no HTTP": (lambda handler: handler.wfile.write(b"+PONG\r\n"), "did not finish its answer"),
}


def test_a_wrong_answer_is_missing_with_its_reason(services: Services) -> None:
    with ExitStack() as stack:
        wrong = {
            f"wrong-{number}": stack.enter_context(scripted(answer))
            for number, (answer, _) in enumerate(WRONG.values())
        }
        proxy = stack.enter_context(
            run_proxy(wrong | {"setosa": services["setosa"].url}, "", SHORT)
        )
        client = stack.enter_context(client_of(proxy))
        answer = ask(client, "/predict")
    assert answer.keys() == {"setosa", "missing"}
    reasons = (reason for _, reason in WRONG.values())
    assert answer["missing"] == dict(zip(wrong, reasons, strict=True))


def test_a_connection_that_was_closed_meanwhile_is_replaced_once() -> None:
    connections: list[int] = []

    def one_answer(handler: Any) -> None:
        connections.append(0)
        read_request(handler)
        handler.wfile.write(head("200 OK", len(content(2))) + content(2))
        # The second request on this connection finds it closed.
        read_request(handler)

    with (
        scripted(one_answer) as url,
        run_proxy({"setosa": url}, "", PATIENT) as server,
        client_of(server) as client,
    ):
        for _ in range(5):
            ask(client, "/predict")
    assert len(connections) == 5


def test_bad_input_reaches_no_service(client: httpx.Client, services: Services) -> None:
    def calls() -> list[int]:
        return [httpx.get(f"{server.url}/calls").json() for server in services.values()]

    before = calls()
    for body in (b"", b"{}", b'{"data": [[1, 2, 3]]}', b'{"data": [[1, 2, 3, NaN]]}'):
        for path in ("/predict", "/predict/label", "/predict/stream"):
            assert client.post(path, content=body).status_code == 422
    assert calls() == before


def test_a_request_under_way_is_answered_after_sigterm() -> None:
    with (
        run_services([0, 0, 2_000]) as services,
        ThreadPoolExecutor() as pool,
        run_proxy(urls_of(services), "", PATIENT) as server,
        client_of(server) as client,
    ):
        asked = pool.submit(ask, client)
        slow = f"{services['virginica'].url}/calls"
        wait_until(lambda: bool(httpx.get(slow).json()), "the call of the slow service")
        server.terminate()
        assert asked.result() == LABELLED
        server.wait(30)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("DEADLINE_SECONDS", "0", "greater than 0"),
        ("DEADLINE_SECONDS", "inf", "finite number"),
        ("SERVICES", '{"setosa": "setosa:8000"}', "URL scheme should be 'http' or 'https'"),
        ("SERVICES", '{"setosa": "here"}', "valid URL"),
        ("SERVICES", "{}", "at least 1 item"),
        ("SERVICES", '{"Set osa": "http://a"}', "should match pattern"),
        ("SERVICES", "setosa", 'error parsing value for field "services"'),
    ],
)
def test_a_wrong_setting_stops_the_start(variable: str, value: str, reason: str) -> None:
    with (
        pytest.raises(ServerError, match=re.escape(reason)),
        run_proxy({"setosa": NOWHERE}, "", {variable: value}),
    ):
        pytest.fail("it has started")


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "label", "guess"),
    [
        ((0.9, 0.2, 0.1), "setosa", "setosa"),
        ((0.3, 0.4, 0.35), "versicolor", "versicolor"),
        ((0.3, 0.4, None), None, "versicolor"),
        ((0.3, 0.5, None), "versicolor", "versicolor"),
        ((None, None, 0.1), None, "virginica"),
    ],
)
def test_a_label_is_never_guessed(
    own: tuple[float | None, ...], label: str | None, guess: str
) -> None:
    replies = [
        Reply(name, None if value is None else [[1 - value, value]], "", 0.0)
        for name, value in zip(LABELS, own, strict=True)
    ]
    assert labels_of(replies) == [label]
    assert best_of_the_rest(replies) == [guess]


# --- spans ----------------------------------------------------------------------------------------


def test_the_spans_of_a_request_are_one_trace_and_probes_have_none() -> None:
    with (
        receiving() as receiver,
        run_services(variables=traced_by(receiver)) as services,
        run_proxy(urls_of(services), "", PATIENT | traced_by(receiver)) as server,
        client_of(server) as client,
    ):
        client.get("/health")
        client.get("/ready")
        trace_id = client.post("/predict", content=BODY).headers["x-trace-id"]
        parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
        assert client.get("/nothing", headers=parent).headers["x-trace-id"] == "a" * 32
        receiver.wait_for(5)
        traces = receiver.traces()
    root, *others = traces[trace_id]
    assert (root.service, root.name, root.parent_id) == ("proxy", "proxy /predict", "")
    assert {span.service for span in others} == {*LABELS}
    assert {span.parent_id for span in others} == {root.span_id}
    assert all(root.overlaps(span) for span in others)
    assert {span.attributes["http.response.status_code"] for span in others} == {200}
    (unknown,) = traces["a" * 32]
    assert (unknown.parent_id, unknown.attributes["http.response.status_code"]) == ("b" * 16, 404)


def test_a_span_ends_before_the_last_part_of_a_response_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", provider.get_tracer(__name__))
    response = StreamingResponse(aiter_of([b"first", b"second"]))
    ended: list[int] = []

    async def send(_: Message) -> None:
        ended.append(len(exporter.get_finished_spans()))

    async def receive() -> Message:
        await asyncio.Event().wait()
        return {}

    scope: Scope = {"type": "http", "path": "/predict/stream", "headers": []}
    asyncio.run(tracing.Traced(response)(scope, receive, send))
    # The head, the two parts, and the end of the stream.
    assert ended == [0, 0, 0, 1]


async def aiter_of(parts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_the_last_spans_are_sent_before_the_process_ends() -> None:
    with receiving() as receiver:
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        with run_proxy({"setosa": NOWHERE}, "", variables) as server, client_of(server) as client:
            client.post("/predict", content=BODY)
            assert receiver.spans == []
        (span,) = receiver.spans
    assert span.attributes["http.response.status_code"] == 503


def test_a_request_that_is_not_sampled_has_no_spans_in_any_service() -> None:
    with receiving() as receiver:
        traced = traced_by(receiver)
        with (
            run_service("setosa", traced) as service,
            run_proxy(
                {"setosa": service.url}, "", traced | {"OTEL_TRACES_SAMPLER": "always_off"}
            ) as server,
            client_of(server) as client,
        ):
            answer = client.post("/predict", content=BODY)
        assert answer.status_code == 200
        assert "x-trace-id" not in answer.headers
        assert receiver.spans == []


def test_without_a_collector_nothing_is_traced(client: httpx.Client) -> None:
    parent = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    answer = client.post("/predict", content=BODY, headers=parent)
    assert "x-trace-id" not in answer.headers


@pytest.mark.slow
def test_mlflow_joins_the_spans_of_all_processes(tmp_path_factory: pytest.TempPathFactory) -> None:
    compose = copy_of(HERE, tmp_path_factory.mktemp(HERE.name))
    with ExitStack() as stack:
        start(compose, compose.services["traces"], stack, {})
        (port,) = compose.services["traces"].ports
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-mlflow-experiment-id=0",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        services = stack.enter_context(run_services(variables=variables))
        server = stack.enter_context(run_proxy(urls_of(services), "", PATIENT | variables))
        client = stack.enter_context(client_of(server))
        trace_id = client.post("/predict", content=BODY).headers["x-trace-id"]
        trace = f"http://127.0.0.1:{port}/api/3.0/mlflow/traces/get?trace_id=tr-{trace_id}"

        def names() -> set[str]:
            found = httpx.get(f"{trace}&allow_partial=true", timeout=60).json()
            return {span["name"] for span in found.get("trace", {}).get("spans", [])}

        expected = {f"{service} /predict" for service in ("proxy", *LABELS)}
        wait_until(lambda: names() == expected, "the spans of four processes")


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.timeout(1800)
def test_a_new_model_changes_only_the_image_of_its_service() -> None:
    assert count_images_of_one_update() == 1


# --- the claim ------------------------------------------------------------------------------------


def test_the_counts_hold_and_without_each_mechanism_they_do_not() -> None:
    requests, missing = 60, 40
    counts, control, _ = count_all(requests, missing, QUICK_MARGIN_SECONDS)
    targets = targets_of(requests, missing)
    met = {name: MEETS[sign](counts[name], bound) for name, (sign, bound) in targets.items()}
    assert met == dict.fromkeys(targets, True), counts
    without = {
        name: MEETS[targets[name][0]](count, targets[name][1]) for name, count in control.items()
    }
    assert without == dict.fromkeys(control, False), control
    uncontrolled = {"calls", "most_calls_of_a_service", "calls_for_bad_requests"}
    assert targets.keys() - control.keys() == uncontrolled
