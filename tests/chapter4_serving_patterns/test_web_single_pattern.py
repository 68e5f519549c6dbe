"""web_single_pattern: every row is answered as scikit-learn would, and nothing else gets a 200."""

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_iris

from chapter4_serving_patterns.web_single_pattern.train.iris import load
from chapter4_serving_patterns.web_single_pattern.train.model import fit
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError, free_port, serve

ROOT = Path(__file__).resolve().parents[2]
PATTERN = ROOT / "chapter4_serving_patterns/web_single_pattern"
SAMPLE = [5.1, 3.5, 1.4, 0.2]
ROW = "[5.1, 3.5, 1.4, 0.2]"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    train(directory)
    return directory


def train(directory: Path) -> None:
    command = [sys.executable, "-m", "train", "--output", str(directory)]
    subprocess.run(command, cwd=PATTERN, check=True, capture_output=True)


def start(
    models: Path, app: str = "app.main:app", **environment: str
) -> AbstractContextManager[Server]:
    port = free_port()
    options = ["--port", str(port), "--timeout-graceful-shutdown", "5"]
    package = ".".join(PATTERN.relative_to(ROOT).parts)
    return serve(
        [sys.executable, "-m", "uvicorn", f"{package}.{app}", *options],
        cwd=ROOT,
        env={"MODEL_DIRECTORY": str(models), **environment},
        ready_url=f"http://127.0.0.1:{port}/ready",
        port=port,
    )


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    with start(models) as server:
        yield server.url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=10) as client:
        yield client


def test_every_row_of_iris_is_answered_as_scikit_learn_would(client: httpx.Client) -> None:
    rows = load_iris().data.astype(np.float32)
    split = load()
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    answer = client.post("/predict", json={"data": rows.tolist()}).json()["prediction"]
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)
    labels = client.post("/predict/label", json={"data": rows.tolist()}).json()["prediction"]
    names = load_iris().target_names
    assert labels == [names[index] for index in expected.argmax(axis=1)]


def test_the_contract_of_a_prediction_server_is_kept(client: httpx.Client, models: Path) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready"}
    assert client.get("/metadata").json() == json.loads((models / "metadata.json").read_text())
    assert client.get("/label").json() == {"0": "setosa", "1": "versicolor", "2": "virginica"}
    predicted = client.post("/predict", json={"data": [SAMPLE]}).json()
    assert client.get("/predict/test").json() == predicted
    assert np.isclose(sum(predicted["prediction"][0]), 1)
    assert client.get("/predict/test/label").json() == {"prediction": ["setosa"]}
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/predict"]["post"]["responses"]) == {"200", "408", "413", "422", "503"}


# Each is a body that is not a valid request, and the reason that the answer has to name.
INVALID_BODIES = {
    "empty": ("", "Invalid JSON"),
    "white space": ("   ", "Invalid JSON"),
    "null": ("null", "an object"),
    "a number": ("1", "an object"),
    "a list": (f"[{ROW}]", "an object"),
    "a text": ('"data"', "an object"),
    "no field": ("{}", "Field required"),
    "a misspelt field": (f'{{"dat": [{ROW}]}}', "Field required"),
    "an unknown field": (f'{{"data": [{ROW}], "model": "x"}}', "Extra inputs"),
    "data is null": ('{"data": null}', "valid array"),
    "data is a number": ('{"data": 5.1}', "valid array"),
    "data is a text": ('{"data": "5.1,3.5,1.4,0.2"}', "valid array"),
    "data is an object": ('{"data": {"0": [5.1, 3.5, 1.4, 0.2]}}', "valid array"),
    "one row without brackets": (f'{{"data": {ROW}}}', "valid array"),
    "no rows": ('{"data": []}', "at least 1 item"),
    "an empty row": ('{"data": [[]]}', "at least 4 items"),
    "three values": ('{"data": [[5.1, 3.5, 1.4]]}', "at least 4 items"),
    "five values": ('{"data": [[5.1, 3.5, 1.4, 0.2, 1]]}', "at most 4 items"),
    "ragged rows": (f'{{"data": [{ROW}, [5.1, 3.5]]}}', "at least 4 items"),
    "a row too deep": (f'{{"data": [[{ROW}]]}}', "valid number"),
    "values too deep": ('{"data": [[[5.1], 3.5, 1.4, 0.2]]}', "valid number"),
    "a null row": ('{"data": [null]}', "valid array"),
    "a null value": ('{"data": [[null, 3.5, 1.4, 0.2]]}', "valid number"),
    "true": ('{"data": [[true, 3.5, 1.4, 0.2]]}', "valid number"),
    "a number as text": ('{"data": [["5.1", 3.5, 1.4, 0.2]]}', "valid number"),
    "an object as value": ('{"data": [[{}, 3.5, 1.4, 0.2]]}', "valid number"),
    "NaN": ('{"data": [[NaN, 3.5, 1.4, 0.2]]}', "finite number"),
    "infinity": ('{"data": [[Infinity, 3.5, 1.4, 0.2]]}', "finite number"),
    "minus infinity": ('{"data": [[-Infinity, 3.5, 1.4, 0.2]]}', "finite number"),
    "above float64": ('{"data": [[1e999, 3.5, 1.4, 0.2]]}', "finite number"),
    "above float32": ('{"data": [[1e39, 3.5, 1.4, 0.2]]}', "less than or equal"),
    "below float32": ('{"data": [[-1e39, 3.5, 1.4, 0.2]]}', "greater than or equal"),
    "a number of 400 digits": (f'{{"data": [[{"9" * 400}, 3.5, 1.4, 0.2]]}}', "number"),
    "too many rows": (f'{{"data": [{",".join([ROW] * 1001)}]}}', "at most 1000 items"),
    "cut off": ('{"data": [[5.1, 3.5', "Invalid JSON"),
    "two documents": (f'{{"data": [{ROW}]}} {{}}', "Invalid JSON"),
    "single quotes": (f"{{'data': [{ROW}]}}", "Invalid JSON"),
    "a trailing comma": (f'{{"data": [{ROW},]}}', "Invalid JSON"),
    "a form": ("data=5.1&data=3.5", "Invalid JSON"),
    "10,000 levels of lists": ("[" * 10_000 + "]" * 10_000, "recursion limit"),
    "10,000 levels of objects": ('{"data":' * 10_000 + "1" + "}" * 10_000, "recursion limit"),
    "20,000 unknown fields": (
        "{" + ",".join(f'"field{number}": 1' for number in range(15_000)) + "}",
        "Extra inputs",
    ),
    "a field name of 200 kB": (f'{{"{"x" * 200_000}": 1}}', "Extra inputs"),
}


@pytest.mark.parametrize("path", ["/predict", "/predict/label"])
@pytest.mark.parametrize(("body", "reason"), INVALID_BODIES.values(), ids=INVALID_BODIES)
def test_an_invalid_body_is_a_422_that_says_why(
    client: httpx.Client, path: str, body: str, reason: str
) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == 422
    assert reason in answer.text
    # The answer names the place and never echoes the body.
    assert len(answer.content) < 5_000


# Too deep for FastAPI's parser, which says so without a reason.
UNREADABLE = {"10,000 levels of lists", "10,000 levels of objects"}
VALID_BODIES = {
    "a row": f'{{"data": [{ROW}]}}',
    "rows": f'{{"data": [{ROW}, [6.7, 3.0, 5.2, 2.3], [0, -0.0, 1e30, 3.4e38]]}}',
    "white space": f' {{ "data" :\n[ {ROW} ] }} ',
    "a field twice": f'{{"data": [], "data": [{ROW}]}}',
}


def test_without_json_route_the_handlers_give_the_same_answers(
    client: httpx.Client, models: Path
) -> None:
    headers = {"content-type": "application/json"}
    bodies = {name: body for name, (body, _) in INVALID_BODIES.items()} | VALID_BODIES
    rest = ["/predict/test", "/predict/test/label", "/health", "/ready", "/metadata", "/label"]
    with (
        start(models, "measure.baselines:without_json_route") as server,
        httpx.Client(base_url=server.url, headers=headers, timeout=10) as fastapi,
    ):
        for path in [*rest, "/openapi.json"]:
            assert client.get(path).content == fastapi.get(path).content, path
        for path in ("/predict", "/predict/label"):
            for name, body in bodies.items():
                ours = client.post(path, content=body, headers=headers)
                theirs = fastapi.post(path, content=body)
                if name in UNREADABLE:
                    assert (ours.status_code, theirs.status_code) == (422, 400), name
                elif ours.content != theirs.content:
                    assert (ours.status_code, theirs.status_code) == (422, 422), name
                    assert places(ours) == places(theirs), name


def places(answer: httpx.Response) -> list[list[str]]:
    """Returns the places of an answer's reasons, without where in its text a body is no JSON."""
    reasons = answer.json()["detail"]
    return [reason["loc"][:1] if "JSON" in reason["msg"] else reason["loc"] for reason in reasons]


def test_a_body_is_read_as_json_whatever_its_content_type(client: httpx.Client) -> None:
    content_types = ["application/x-www-form-urlencoded", "text/plain", "nonsense", ""]
    for content_type in content_types:
        headers = [("content-type", content_type), ("content-type", "application/xml")]
        answer = client.post("/predict", content=VALID_BODIES["a row"], headers=headers)
        assert answer.status_code == 200, content_type


def test_the_description_shows_the_sample_of_the_model(client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    sample = client.get("/metadata").json()["sample"]
    assert schemas["PredictRequest"]["example"] == {"data": sample}


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe",
        b'{"data": "\xff"}',
        b"\x00" * 100,
        b'\xef\xbb\xbf{"data": []}',
        b"%PDF-1.4 \x80",
    ],
)
def test_bytes_that_are_no_text_are_a_422(client: httpx.Client, body: bytes) -> None:
    assert client.post("/predict", content=body).status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("DELETE", "/predict/label", 405),
        ("POST", "/health", 405),
        ("GET", "/nothing", 404),
        ("GET", "/predict/", 307),
        ("GET", "//predict/test", 404),
        ("GET", "/predict/test/label/1", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/metadata?file=../../etc/passwd", 200),
        ("GET", f"/{'x' * 10_000}", 404),
        ("POST", "/predict/test", 405),
    ],
)
def test_other_requests_get_the_status_that_http_has_for_them(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    assert client.request(method, path).status_code == status


@pytest.mark.parametrize(
    "row",
    ["[1, 2, 3, 4]", "[0, 0, 0, 0]", "[-1e30, 1e30, 0, -0.0]", "[3.4e38, 3.4e38, 3.4e38, 3.4e38]"],
)
def test_unusual_but_valid_numbers_are_answered_with_probabilities(
    client: httpx.Client, row: str
) -> None:
    answer = client.post("/predict", content=f'{{"data": [{row}]}}')
    assert answer.status_code == 200
    assert np.isclose(sum(answer.json()["prediction"][0]), 1, atol=1e-5)


def test_no_generated_request_gets_an_undocumented_answer(url: str, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *["run", f"{url}/openapi.json", "--max-examples", "200", "--seed", "1", "--no-color"],
        # FastAPI itself answers OPTIONS of a path with the methods of its first route only.
        *["--exclude-checks", "unsupported_method"],
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-5_000:]


def send(url: str, head: str, body: bytes = b"") -> socket.socket:
    """Opens a connection and sends the beginning of a request."""
    connection = socket.create_connection((httpx.URL(url).host, httpx.URL(url).port), timeout=10)
    connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    return connection


def status_of(connection: socket.socket) -> int:
    """Reads an answer up to the end of its first line."""
    with connection, connection.makefile("rb") as answer:
        return int(answer.readline().split()[1])


@pytest.mark.parametrize(
    "head",
    [
        "GET /health",
        "GET /health HTTP/9.9\nHost: a",
        "POST /predict HTTP/1.1\nHost: a\nContent-Length: x",
        "POST /predict HTTP/1.1\nHost: a\nContent-Length: -5",
        "POST /predict HTTP/1.1\nHost: a\nContent-Length: 5\nTransfer-Encoding: chunked",
        "POST /predict HTTP/1.1\nHost: a\nBad header\nContent-Length: 0",
        "\x16\x03\x01",
    ],
)
def test_what_is_not_http_is_a_400(url: str, head: str) -> None:
    with send(url, head) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").readline().startswith((b"HTTP/1.1 400", b""))
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb_is_a_413_while_others_are_answered(url: str, chunked: bool) -> None:
    answered: list[int] = []
    done = threading.Event()

    def others() -> None:
        with httpx.Client() as client:
            while not done.is_set():
                answered.append(client.get(f"{url}/predict/test").status_code)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        block = b" " * 1_000_000
        content: Any = (block for _ in range(100)) if chunked else block * 100
        assert httpx.post(f"{url}/predict", content=content).status_code == 413
    finally:
        done.set()
        thread.join()
    assert answered
    assert set(answered) == {200}


def test_an_announced_large_body_is_refused_before_it_is_sent(url: str) -> None:
    head = "POST /predict HTTP/1.1\nHost: a\nContent-Length: 100000000"
    assert status_of(send(url, head)) == 413


@pytest.fixture(scope="module")
def strict_url(models: Path) -> Iterator[str]:
    limits = {"BODY_DEADLINE_SECONDS": "0.5", "MAX_REQUESTS_AT_ONCE": "2", "MAX_ROWS": "3"}
    with start(models, **limits) as server:
        yield server.url


def test_a_body_that_does_not_arrive_is_a_408_at_its_deadline(strict_url: str) -> None:
    for body in (b"", b'{"data"'):
        head = "POST /predict HTTP/1.1\nHost: a\nContent-Length: 50"
        assert status_of(send(strict_url, head, body)) == 408


def test_a_body_that_trickles_is_a_408_too(strict_url: str) -> None:
    with send(strict_url, "POST /predict HTTP/1.1\nHost: a\nContent-Length: 50") as connection:
        connection.settimeout(0.1)
        received = b""
        while not received:
            try:
                connection.sendall(b" ")
                received = connection.recv(100)
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408")


def test_a_client_that_goes_away_in_its_body_costs_nothing(strict_url: str) -> None:
    for _ in range(20):
        send(strict_url, "POST /predict HTTP/1.1\nHost: a\nContent-Length: 50", b"{").close()
    assert poll_ready(strict_url)


def poll_ready(url: str) -> bool:
    """Waits until places that clients have left are free again."""
    with httpx.Client() as client:
        return any(client.get(f"{url}/ready").status_code == 200 for _ in range(10_000))


def test_requests_above_the_limit_are_a_503_with_retry_after_and_health_is_answered(
    strict_url: str,
) -> None:
    head = "POST /predict HTTP/1.1\nHost: a\nContent-Length: 50"
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(send(strict_url, head))
        answers = [httpx.get(f"{strict_url}/ready") for _ in range(2)]
        assert httpx.get(f"{strict_url}/health").status_code == 200
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["retry-after"] for answer in answers} == {"1"}
    assert poll_ready(strict_url)


def test_the_number_of_rows_is_a_setting(strict_url: str) -> None:
    for rows, status in ((3, 200), (4, 422)):
        answer = httpx.post(f"{strict_url}/predict", json={"data": [SAMPLE] * rows})
        assert answer.status_code == status


def test_what_was_accepted_before_sigterm_is_answered(models: Path) -> None:
    body = json.dumps({"data": [SAMPLE]}).encode()
    head = f"POST /predict HTTP/1.1\nHost: a\nContent-Length: {len(body)}"
    with start(models) as server:
        connections = [send(server.url, head, body[:10]) for _ in range(16)]
        # The requests are accepted once the server has read their heads, which a busy one shows.
        assert httpx.get(f"{server.url}/health").status_code == 200
        server.terminate()
        for connection in connections:
            connection.sendall(body[10:])
        assert [status_of(connection) for connection in connections] == [200] * 16
        assert server.wait(10) in (0, -signal.SIGTERM)


def test_sigterm_under_load_cuts_no_answer_short(models: Path) -> None:
    answers: list[int] = []
    cut_short: list[str] = []

    def ask(port: int) -> None:
        # A connection for each request: one that was accepted gets a whole answer, one that was
        # not is refused or closed before the first byte of one.
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                connection.request("POST", "/predict", json.dumps({"data": [SAMPLE]}))
                answer = connection.getresponse()
            except (OSError, http.client.RemoteDisconnected):
                return
            try:
                answers.append(len(json.loads(answer.read())["prediction"]))
            except (OSError, ValueError, http.client.HTTPException) as error:
                cut_short.append(repr(error))
            finally:
                connection.close()

    with start(models) as server:
        threads = [
            threading.Thread(target=ask, args=[httpx.URL(server.url).port]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        while len(answers) < 200:
            threads[0].join(0.01)
        server.terminate()
        for thread in threads:
            thread.join()
        assert server.wait(10) in (0, -signal.SIGTERM)
    assert set(answers) == {1}
    assert cut_short == []


def break_digest(models: Path) -> None:
    content = bytearray((models / "model.onnx").read_bytes())
    content[100] ^= 1
    (models / "model.onnx").write_bytes(content)


def write_model(models: Path, content: bytes, **changes: object) -> None:
    """Replaces the model and gives the metadata the right digest."""
    metadata = json.loads((models / "metadata.json").read_text())
    metadata |= {"sha256": hashlib.sha256(content).hexdigest()} | changes
    (models / "model.onnx").write_bytes(content)
    (models / "metadata.json").write_text(json.dumps(metadata))


BROKEN_MODELS = {
    "no model": (lambda models: (models / "model.onnx").unlink(), "no usable model"),
    "no metadata": (lambda models: (models / "metadata.json").unlink(), "no usable model"),
    "another digest": (break_digest, "SHA-256"),
    "cut off": (lambda models: os.truncate(models / "model.onnx", 500), "SHA-256"),
    "not onnx": (lambda models: write_model(models, b"a picture"), "not a model"),
    "empty": (lambda models: write_model(models, b""), "not a model"),
    "another input": (
        lambda models: write_model(
            models, (models / "model.onnx").read_bytes(), input={"name": "pixels", "shape": [1]}
        ),
        "no input pixels",
    ),
    "another number of labels": (
        lambda models: write_model(models, (models / "model.onnx").read_bytes(), labels=["a"]),
        "no output",
    ),
    "metadata is no json": (
        lambda models: (models / "metadata.json").write_text("{"),
        "no usable model",
    ),
    "metadata is a list": (
        lambda models: (models / "metadata.json").write_text("[]"),
        "no usable model",
    ),
}


@pytest.mark.parametrize(("damage", "reason"), BROKEN_MODELS.values(), ids=BROKEN_MODELS)
def test_a_model_that_is_not_the_one_described_is_never_served(
    models: Path, tmp_path: Path, damage: Any, reason: str
) -> None:
    shutil.copytree(models, tmp_path / "models")
    damage(tmp_path / "models")
    with pytest.raises(ServerError, match=reason), start(tmp_path / "models"):
        pass


def test_the_converted_model_computes_what_scikit_learn_does(models: Path) -> None:
    split = load()
    # Both sides of the classes, and rows that are far from any flower.
    rows = np.vstack([load_iris().data, np.random.default_rng(0).uniform(-50, 50, (200, 4))])
    rows = rows.astype(np.float32)
    session = onnxruntime.InferenceSession(models / "model.onnx")
    answer = session.run(["probabilities"], {"X": rows})[0]
    expected = fit(split.x_train, split.y_train).predict_proba(rows)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-5)


def test_training_twice_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    train(tmp_path)
    for name in ("model.onnx", "metadata.json"):
        assert (tmp_path / name).read_bytes() == (models / name).read_bytes()


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    if not (PATTERN / "models/metadata.json").exists():
        train(PATTERN / "models")
    module = "chapter4_serving_patterns.web_single_pattern.measure"
    output = tmp_path / PATTERN.name / "measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(output)]
    subprocess.run(command, cwd=PATTERN.parents[1], check=True, capture_output=True)
    results = load_results(tmp_path / PATTERN.name)
    assert results.counts == {"rows_answered": 150, "rows_equal": 150}
    # Fifteen requests, one row of each, and an answer to the request that had no rows.
    assert results.control == {"rows_answered": 15, "rows_equal": 14}
