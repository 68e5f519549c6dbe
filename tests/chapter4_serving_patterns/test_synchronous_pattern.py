"""synchronous_pattern: a real web and predictor, and a predictor that answers what a test wants."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from time import sleep

import httpx
import numpy as np
import onnxruntime
import pytest
import yaml
from sklearn.datasets import load_digits

from chapter4_serving_patterns.synchronous_pattern.measure.__main__ import (
    AT_ONCE,
    STEPS,
    WAITING,
)
from chapter4_serving_patterns.synchronous_pattern.measure.processes import (
    HERE,
    PACKAGE,
    ROOT,
    run_predictor,
    run_web,
)
from chapter4_serving_patterns.synchronous_pattern.web.settings import Settings
from tests.bad_bodies import Rows, of_any_object, of_rows
from tools.measure.results import load as load_results
from tools.measure.server import Server, wait_until
from tools.mesh.proxy import fetch
from tools.run.ports import free_port

PATIENCE_SECONDS = 60.0
SHORT_SECONDS = 0.2
ROW = [0.0] * 64
BODY = json.dumps({"data": [ROW]}).encode()
JSON = {"content-type": "application/json"}
PATHS = ("/predict", "/predict/label", "/sort")
FALLBACK = {"prediction": None, "lane": ["by hand"], "fallback": True}
# Instead of a part of an answer: the end of the connection.
CLOSE = b""
LABELS = b'{"prediction":["1"]}'
PROBABILITIES = json.dumps({"prediction": [[0.0, 1.0, *[0.0] * 8]]}).encode()


@pytest.fixture(scope="module", autouse=True)
def model() -> None:
    """Trains the model unless it is there already."""
    if not (HERE / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=HERE, check=True)


@pytest.fixture(scope="module")
def predictor(model: None) -> Iterator[Server]:
    with run_predictor(HERE / "models") as server:
        yield server


@pytest.fixture(scope="module")
def client(predictor: Server) -> Iterator[httpx.Client]:
    """Calls a web that waits for the real predictor as long as it takes."""
    with run_web(predictor.url, deadline_seconds=PATIENCE_SECONDS) as web, calling(web) as client:
        yield client


@contextmanager
def calling(web: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=web.url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
        yield client


def calls_of(predictor: Server) -> int:
    return len(fetch(f"{predictor.url}/calls"))


# --- a predictor that answers what a test wants ---------------------------------------------------


def response(content: bytes, status: str = "200 OK", *fields: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(content)}", *fields]
    return "\r\n".join([*head, "", ""]).encode() + content


class Scripted(ThreadingTCPServer):
    """Records each request, and sends what `answer` returns for its path."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.connections = 0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answer: Callable[[str], Iterable[bytes]] = predicted

    def handle_error(self, *_: object) -> None:
        """A caller that leaves is expected."""


def predicted(path: str) -> Iterable[bytes]:
    return [response(PROBABILITIES if path == "/predict" else LABELS)]


def always(parts: Iterable[bytes], _: str) -> Iterable[bytes]:
    return parts


class Session(StreamRequestHandler):
    """One connection."""

    server: Scripted

    def handle(self) -> None:
        self.server.connections += 1
        while request := self.rfile.readline().decode():
            lines = iter(lambda: self.rfile.readline().decode().strip(), "")
            fields = dict(line.lower().split(": ", 1) for line in lines)
            body = self.rfile.read(int(fields.get("content-length", "0")))
            path = request.split()[1]
            self.server.requests.append((path, fields, body))
            for part in self.server.answer(path):
                if part is CLOSE:
                    return
                self.wfile.write(part)


@pytest.fixture(scope="module")
def scripted_server() -> Iterator[Scripted]:
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def scripted(scripted_server: Scripted) -> Scripted:
    scripted_server.answer = predicted
    scripted_server.connections = 0
    scripted_server.requests = []
    return scripted_server


@pytest.fixture(scope="module")
def patient(scripted_server: Scripted) -> Iterator[httpx.Client]:
    with (
        run_web(scripted_server.url, deadline_seconds=PATIENCE_SECONDS) as web,
        calling(web) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def hasty(scripted_server: Scripted) -> Iterator[httpx.Client]:
    with (
        run_web(scripted_server.url, deadline_seconds=SHORT_SECONDS) as web,
        calling(web) as client,
    ):
        yield client


# --- with the real predictor ----------------------------------------------------------------------


def test_every_row_gets_the_prediction_of_the_model(client: httpx.Client) -> None:
    rows = load_digits().data[:32].astype(np.float32)
    session = onnxruntime.InferenceSession(HERE / "models/model.onnx")
    (expected,) = session.run(["probabilities"], {"X": rows})
    answer = client.post("/predict", json={"data": rows.tolist()})
    assert np.allclose(answer.json()["prediction"], expected, rtol=0, atol=1e-5)
    labels = [str(digit) for digit in expected.argmax(axis=1)]
    answer = client.post("/predict/label", json={"data": rows.tolist()})
    assert answer.json() == {"prediction": labels}
    sorted_ = client.post("/sort", json={"data": rows.tolist()}).json()
    assert (sorted_["prediction"], sorted_["fallback"]) == (labels, False)
    lanes = dict(zip("0123456789", "nnneeessww", strict=True))
    assert [lane[0] for lane in sorted_["lane"]] == [lanes[label] for label in labels]


def test_what_predictor_says_of_its_model_is_passed_on(
    client: httpx.Client, predictor: Server
) -> None:
    for path in ("/metadata", "/label", "/predict/test", "/predict/test/label"):
        assert client.get(path).json() == fetch(f"{predictor.url}{path}")


def test_the_deadline_of_a_caller_is_a_whole_number(predictor: Server) -> None:
    calls = calls_of(predictor)
    for text in ("", "x", "-1", "1.5", "1e3", "nan", "\u0661", "9" * 10, "9" * 5_000):
        for method, path in (("POST", "/predict"), ("GET", "/predict/test/label")):
            answer = httpx.request(
                method,
                f"{predictor.url}{path}",
                content=BODY if method == "POST" else None,
                headers={b"x-deadline-ms": text.encode()},
            )
            assert answer.status_code == 422, text
            assert "whole number of milliseconds" in answer.json()["detail"]
    assert calls_of(predictor) == calls


def test_the_model_is_not_called_after_the_deadline_of_the_caller(predictor: Server) -> None:
    def ask(deadline_ms: str) -> httpx.Response:
        return httpx.post(
            f"{predictor.url}/predict",
            content=BODY,
            headers={"x-deadline-ms": deadline_ms},
            timeout=PATIENCE_SECONDS,
        )

    calls = calls_of(predictor)
    late = ask("0")
    assert (late.status_code, calls_of(predictor)) == (504, calls)
    assert "deadline of the caller" in late.json()["detail"]
    in_time = ask("999999999")
    assert (in_time.status_code, calls_of(predictor)) == (200, calls + 1)
    assert in_time.headers["server-timing"].startswith("model;dur=")


def test_a_killed_predictor_costs_a_caller_its_prediction_and_nothing_else(model: None) -> None:
    with (
        run_predictor(HERE / "models") as predictor,
        run_web(predictor.url, deadline_seconds=PATIENCE_SECONDS) as web,
        calling(web) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        fetch(f"{predictor.url}/hang", "POST")
        sent = [pool.submit(client.post, path, content=BODY) for path in ("/sort", "/predict")]
        wait_until(lambda: calls_of(predictor) == 1, "the model to hang")
        predictor.kill()
        assert sent[0].result().json() == FALLBACK
        refused = sent[1].result()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json() == {"detail": "predictor is out of reach"}
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
        assert client.get("/metadata").status_code == 503
        reason = "1 x 503 predictor is out of reach or overloaded, so by hand"
        wait_until(lambda: reason in web.log.read_text("utf-8"), "the log to say so")
        # The same web goes on with a new predictor.
        with run_predictor(HERE / "models", port=int(predictor.url.rpartition(":")[2])):
            assert client.post("/sort", content=BODY).json()["fallback"] is False


# --- with one that answers what the test wants ----------------------------------------------------


def test_bad_bodies_never_reach_predictor(patient: httpx.Client, scripted: Scripted) -> None:
    rows = Rows([0.0] * 64, 0.0, 16.0, 32)
    corpus = of_any_object(required=True) | of_rows(rows)
    assert len(corpus) >= 60
    for path in PATHS:
        for name, (body, reason) in corpus.items():
            answer = patient.post(path, content=body, headers=JSON)
            assert (answer.status_code, reason in answer.text) == (422, True), f"{path}, {name}"
        assert patient.post(path, content=b" " * 100_000).status_code == 413
    assert scripted.requests == []


def test_the_body_is_passed_on_as_it_came(patient: httpx.Client, scripted: Scripted) -> None:
    body = b' { "data"\t:\n[ [' + b"1.50, " * 63 + b"0e0 ] ] } "
    headers = {"content-type": "application/x-www-form-urlencoded", "cookie": "a=b"}
    for path in PATHS:
        assert patient.post(path, content=body, headers=headers).status_code == 200
    for path, fields, received in scripted.requests:
        assert path in PATHS
        assert (received, fields["content-type"]) == (body, "application/json")
        assert "cookie" not in fields
    # The three used one connection.
    assert len(scripted.requests) == 3
    assert scripted.connections <= 1


HTML = b"<html>502 Bad Gateway</html>"
NONSENSE: dict[str, list[bytes]] = {
    "a 500": [response(b'{"detail": "it broke"}', "500 Internal Server Error")],
    "a 404": [response(b"{}", "404 Not Found")],
    "a redirect": [response(b"", "302 Found", "location: /predict/label")],
    "HTML": [response(HTML, "200 OK", "content-type: text/html")],
    "nothing": [response(b"")],
    "a 204": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "another object": [response(b'{"labels":["1"]}')],
    "a number": [response(b'{"prediction":[1]}')],
    "NaN": [response(b'{"prediction":NaN}')],
    "no rows": [response(b'{"prediction":[]}')],
    "two for one row": [response(b'{"prediction":["1","2"]}')],
    "half a JSON": [response(LABELS[:-3])],
    "half an answer": [response(LABELS)[:-3], CLOSE],
    "half a chunk": [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", CLOSE],
    "a head without an end": [b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000, CLOSE],
    "a compressed answer": [response(gzip.compress(LABELS), "200 OK", "content-encoding: gzip")],
    "too large an answer": [response(b" " * 2_000_000 + LABELS)],
    "an answer without an end": [b"HTTP/1.1 200 OK\r\n\r\n", *repeat(b" " * 100_000, 200), CLOSE],
    "no HTTP": [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", CLOSE],
    "a 422 with another body": [response(HTML, "422 Unprocessable Entity")],
}


@pytest.mark.parametrize("parts", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_a_502_or_the_fallback_and_not_asked_for_again(
    patient: httpx.Client, scripted: Scripted, parts: list[bytes]
) -> None:
    scripted.answer = partial(always, parts)
    for path in ("/predict", "/predict/label"):
        answer = patient.post(path, content=BODY)
        assert (path, answer.status_code) == (path, 502)
        assert "predictor" in answer.json()["detail"]
    assert patient.get("/label").status_code == 502
    requests = len(scripted.requests)
    assert patient.post("/sort", content=BODY).json() == FALLBACK
    assert len(scripted.requests) == requests + 1


def test_what_predictor_refuses_is_passed_on(patient: httpx.Client, scripted: Scripted) -> None:
    refusals = {
        "422 Unprocessable Entity": (422, "no finite answer", None),
        "503 Service Unavailable": (503, "accepts no more", "1"),
        "504 Gateway Timeout": (504, "not free in time", None),
    }
    for status, (expected, reason, retry_after) in refusals.items():
        refusal = response(b'{"detail": "the model has no finite answer"}', status)
        scripted.answer = partial(always, [refusal])
        answer = patient.post("/predict", content=BODY)
        assert (answer.status_code, answer.headers.get("retry-after")) == (expected, retry_after)
        assert reason in answer.json()["detail"]
        assert patient.post("/sort", content=BODY).json() == FALLBACK


def test_a_connection_that_was_just_closed_gets_a_second_try(
    patient: httpx.Client, scripted: Scripted
) -> None:
    scripted.answer = lambda path: [CLOSE] if len(scripted.requests) == 1 else predicted(path)
    assert patient.post("/predict/label", content=BODY).json() == {"prediction": ["1"]}
    assert len(scripted.requests) == 2


def test_there_is_no_third_try(patient: httpx.Client, scripted: Scripted) -> None:
    scripted.answer = partial(always, [CLOSE])
    answer = patient.post("/predict/label", content=BODY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert len(scripted.requests) == 2
    assert patient.post("/sort", content=BODY).json() == FALLBACK


def test_the_deadline_is_passed_on_and_covers_both_tries(
    patient: httpx.Client, scripted: Scripted
) -> None:
    scripted.answer = lambda path: [CLOSE] if len(scripted.requests) == 1 else predicted(path)
    patient.post("/sort", content=BODY)
    first, second = (int(fields["x-deadline-ms"]) for _, fields, _ in scripted.requests)
    assert 0 < second <= first <= PATIENCE_SECONDS * 1000


def dripping() -> Iterator[bytes]:
    """An answer that never stalls and never ends."""
    yield b"HTTP/1.1 200 OK\r\n\r\n"
    for _ in range(2_000):
        yield b" "
        sleep(0.01)


def silent(over: threading.Event) -> Iterator[bytes]:
    over.wait(PATIENCE_SECONDS)
    yield CLOSE


def test_one_deadline_covers_all_that_a_call_takes(hasty: httpx.Client, scripted: Scripted) -> None:
    over = threading.Event()
    late: dict[str, Callable[[str], Iterable[bytes]]] = {
        "no answer": lambda _: silent(over),
        "a byte now and then": lambda _: dripping(),
        "no answer to the second try": lambda _: (
            [CLOSE] if len(scripted.requests) == 1 else silent(over)
        ),
    }
    for what, scripted.answer in late.items():
        scripted.requests = []
        answer = hasty.post("/predict", content=BODY)
        assert (what, answer.status_code) == (what, 504)
        assert answer.json() == {"detail": "no prediction within 0.2 s"}
        assert hasty.post("/sort", content=BODY).json() == FALLBACK
    over.set()


def test_an_address_without_a_server_is_the_fallback() -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with run_web(nowhere, deadline_seconds=PATIENCE_SECONDS) as web, calling(web) as client:
        assert client.post("/predict", content=BODY).status_code == 503
        assert client.post("/sort", content=BODY).json() == FALLBACK


def test_more_calls_at_once_than_allowed_are_refused(scripted: Scripted) -> None:
    over = threading.Event()

    def held(path: str) -> Iterator[bytes]:
        over.wait(PATIENCE_SECONDS)
        yield from predicted(path)

    scripted.answer = held
    limits = {"MAX_PREDICTIONS_AT_ONCE": "2"}
    with (
        run_web(scripted.url, deadline_seconds=PATIENCE_SECONDS, **limits) as web,
        calling(web) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        under_way = [pool.submit(client.post, path, content=BODY) for path in ("/sort", "/predict")]
        wait_until(lambda: len(scripted.requests) == 2, "two calls")
        for path in PATHS:
            refused = client.post(path, content=BODY)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json() == {"detail": "more than 2 predictions at once"}
        assert client.get("/ready").status_code == 200
        over.set()
        assert [future.result().status_code for future in under_way] == [200, 200]
        assert client.post("/sort", content=BODY).json()["fallback"] is False
    assert len(scripted.requests) == 3


# --- the programs ---------------------------------------------------------------------------------


def test_web_needs_none_of_the_libraries_of_the_model() -> None:
    code = (
        f"import sys, {PACKAGE}.web.main\n"
        "print({'numpy', 'onnxruntime', 'sklearn'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "set()\n"


@pytest.mark.parametrize("name", ["DEADLINE_SECONDS", "MAX_PREDICTIONS_AT_ONCE"])
def test_a_limit_of_nothing_is_refused_at_the_start(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="greater than 0"):
        Settings()


def test_two_predictors_answer_all_that_web_may_send_within_the_deadline() -> None:
    """A call takes about 1 ms, as manifests/predictor_hpa.yml says."""

    def bounds(name: str) -> dict[str, int]:
        spec: dict[str, int] = yaml.safe_load((HERE / "manifests" / name).read_text("utf-8"))[
            "spec"
        ]
        return spec

    most = bounds("hpa.yml")["maxReplicas"] * Settings().max_predictions_at_once
    assert most == 640
    assert most * 0.001 / bounds("predictor_hpa.yml")["minReplicas"] <= Settings().deadline_seconds


# --- the measurement ------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_controls_do_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "measure")], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.counts == {
        "steps": STEPS,
        "steps_after_prediction": STEPS,
        "late_callers": 0,
        "fallbacks": WAITING,
        "begun_for_nobody": 0,
    }
    assert results.control == {
        "steps": STEPS,
        "steps_after_prediction": 0,
        "late_callers": WAITING,
        "fallbacks": 0,
        # All but the one that hangs.
        "begun_for_nobody": AT_ONCE - 1,
    }
