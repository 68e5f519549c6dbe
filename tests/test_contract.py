"""Every server keeps the contract: this finds it in the Compose files, starts it and attacks it.

A server is a built service that uvicorn runs. Its OpenAPI document decides what is checked: one
that declares `/predict` must have all endpoints of a prediction server, every operation with a body
must reject bad bodies, and a declared 408, 413 or 503 must occur. A pattern's own tests cover only
what the pattern adds.

Every server must predict. Of several servers of one program, the first is attacked, and what only
the HTTP protocol does is tested where the protocol has its original.
"""

import hashlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import MappingProxyType
from typing import Any, Self

import httpx
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from tests.bad_bodies import (
    Pictures,
    Rows,
    Texts,
    at_the_limit,
    of_any_list,
    of_any_object,
    of_entries,
    unsupported,
)
from tools.check.repository import book
from tools.check.selection import FULL
from tools.generate.copies import read_mark
from tools.measure.server import Server, ServerError, suspended, wait_until
from tools.measure.servers import run_uvicorn
from tools.measure.services import asgi_services, copy_of, needed_by, run_around, run_service
from tools.read.compose import Compose, load
from tools.read.patterns import ROOT, patterns
from tools.read.programs import package_of
from tools.read.settings import variables_of

EXAMPLES = 50 if FULL else 25
# Far above the time of any response: only a server that hangs reaches this limit.
PATIENCE_SECONDS = 60.0
STRICT = {"MAX_REQUESTS_AT_ONCE": "2", "CLIENT_DEADLINE_SECONDS": "0.5"}
LARGE_BYTES = 100_000_000
MEGABYTE = b" " * 1_000_000
LONGEST_ANSWER_BYTES = 5_000
MOST_PARTS = 5_000
SOME_ID = "00000000-0000-4000-8000-000000000000"
JSON = {"content-type": "application/json"}
# A caller's text, which no log should repeat.
MARK = "xyzzy"
# ONNX Runtime 1.32 sends nothing where one of these is set.
VARIABLES_OF_CI = """
    CI TF_BUILD GITHUB_ACTIONS GITLAB_CI CIRCLECI TRAVIS JENKINS_URL CODEBUILD_BUILD_ID BUILDKITE
    TEAMCITY_VERSION APPVEYOR BITBUCKET_BUILD_NUMBER
"""
# An invalid body may also be too large, which Schemathesis does not expect.
REJECTIONS = """
[checks.negative_data_rejection]
expected-statuses = [400, 404, 405, 413, 415, 422]
"""
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
PREDICTS = {
    ("/predict", "post"): {408, 413, 415, 422, 503},
    ("/predict/label", "post"): {408, 413, 415, 422, 503},
    ("/predict/test", "get"): {503},
    ("/predict/test/label", "get"): {503},
    ("/health", "get"): set(),
    ("/ready", "get"): {503},
    ("/metadata", "get"): {503},
    ("/label", "get"): {503},
}
DESCRIBED = {
    *("name", "version", "sha256", "input", "output", "labels", "metrics", "sample"),
    "training_data_sha256",
}
# Of these, what a server has whose answers are more than probabilities.
OF_DECISIONS = ("/predict", "/health", "/ready", "/metadata")
BOOK = (
    *("data_type", "data_structure", "data_sample"),
    *("prediction_type", "prediction_structure", "prediction_sample"),
)


class Findings(list[str]):
    """Violations of the contract; empty if there are none."""

    def expect(self, condition: bool, otherwise: str) -> None:
        if not condition:
            self.append(otherwise)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        try:
            wait_until(condition, what, seconds)
        except TimeoutError as error:
            self.append(str(error))


class Subject:
    """A running server and its OpenAPI document."""

    def __init__(self, server: Server, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.server = server
        self.url = server.url
        self.address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        self.patience_seconds = patience_seconds
        self.client = httpx.Client(
            base_url=self.url, timeout=patience_seconds, trust_env=False, follow_redirects=False
        )
        answer = self.client.get("/openapi.json")
        # A server without a document, such as a file server, has no declared operations.
        self.document: dict[str, Any] = answer.json() if answer.status_code == 200 else {}

    @property
    def operations(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The declared operations, by path and method."""
        return {
            (path, method): operation
            for path, methods in self.document.get("paths", {}).items()
            for method, operation in methods.items()
        }

    @property
    def predicts(self) -> bool:
        return ("/predict", "post") in self.operations

    @property
    def answer(self) -> dict[str, Any]:
        """The schema of a prediction."""
        answers = self.operations.get(("/predict", "post"), {}).get("responses", {})
        content = answers.get("200", {}).get("content", {})
        return self.resolved(content.get("application/json", {}).get("schema", {}))

    @property
    def asks_services(self) -> bool:
        """Whether each of several services answers for every row, under its own name."""
        of_service = self.answer.get("additionalProperties")
        properties = self.resolved(of_service) if isinstance(of_service, dict) else {}
        return "prediction" in properties.get("properties", {})

    @property
    def entry(self) -> dict[str, Any]:
        """The schema of what a row gets."""
        prediction = self.answer.get("properties", {}).get("prediction", {})
        return self.resolved(prediction.get("items", {}))

    @property
    def is_partial(self) -> bool:
        """Whether a row may get null, because a service that it needs is gone.

        Such a server has no model of its own; it asks those that have one.
        """
        return {"type": "null"} in self.entry.get("anyOf", [])

    @property
    def decides(self) -> bool:
        """Whether a row gets more than probabilities: a decision or an answer for each model."""
        return self.asks_services or self.entry.get("type") == "object"

    def declared(self, path: str, method: str) -> set[int]:
        operation = self.operations.get((path, method), {"responses": {}})
        return {int(status) for status in operation["responses"]}

    @property
    def with_body(self) -> list[str]:
        """The paths that accept a JSON body, in order of declaration."""
        return [
            path
            for (path, method), operation in self.operations.items()
            if method == "post" and "requestBody" in operation
        ]

    def invalid(self, path: str) -> int:
        """The status that rejects a body: 422, or 400 if only that is declared."""
        declared = self.declared(path, "post")
        return 400 if 400 in declared and 422 not in declared else 422

    @property
    def served(self) -> set[int]:
        """The statuses of a request that had a place."""
        return {200, 202, *(self.invalid(path) for path in self.with_body[:1] or ["/predict"])}

    def media_types(self, path: str) -> set[str]:
        """The content types that a body may have."""
        return set(self.operations[path, "post"]["requestBody"]["content"])

    @property
    def bounded(self) -> str | None:
        """A path that declares responses to a body that is too large or too slow."""
        found = [path for path in self.with_body if {408, 413} <= self.declared(path, "post")]
        return real(found[0]) if found else None

    @property
    def counted(self) -> str | None:
        """A path that is rejected while there are too many concurrent requests."""
        exempt = ("/health", "/ready")
        found = [
            path
            for path, method in self.operations
            if method == "get" and "{" not in path and not path.endswith(exempt)
        ]
        return found[0] if found else None

    def resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Follows the references of a schema."""
        while "$ref" in schema:
            schema = self.definitions[schema["$ref"].rpartition("/")[2]]
        return schema

    @property
    def definitions(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document.get("components", {}).get("schemas", {})
        return found

    def body_schema(self, path: str) -> dict[str, Any]:
        content = self.operations[path, "post"]["requestBody"]["content"]
        return self.resolved(content["application/json"]["schema"])

    def takes_list(self, path: str) -> bool:
        """Tells whether the body is a list of objects instead of an object."""
        return self.body_schema(path).get("type") == "array"

    @cached_property
    def rows(self) -> Rows | Texts:
        """The description of rows in `/metadata` and in the schema of `/predict`."""
        data = self.resolved(self.body_schema("/predict")["properties"]["data"])
        row = self.resolved(data.get("items", {}))
        if row.get("contentEncoding") == "base64":
            return Pictures(self.client.get("/metadata").json()["sample"][0], data["maxItems"])
        # Columns may have bounds of their own.
        columns = row.get("prefixItems", [])
        value = self.resolved(columns[0] if columns else row.get("items", {}))
        sample = self.client.get("/metadata").json()["sample"][0]
        if row.get("type") == "string":
            return Texts(sample, data.get("maxItems", 1_000), row.get("pattern"))
        # The default bounds are those of float32, in which models compute.
        highest = 3.4028234663852886e38
        return Rows(
            sample,
            value.get("minimum", -highest),
            value.get("maximum", highest),
            data.get("maxItems", 1_000),
            [(column["minimum"], column["maximum"]) for column in columns],
        )

    @cached_property
    def beside_rows(self) -> dict[str, Any]:
        """What a prediction requires besides its rows, with the values of the example."""
        schema = self.body_schema("/predict")
        required = set(schema.get("required", [])) - {"data"}
        return {name: schema["example"][name] for name in sorted(required)}

    def body(self, rows: Sequence[object]) -> dict[str, Any]:
        return {"data": rows, **self.beside_rows}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)

    def post(
        self, path: str, body: bytes, headers: Mapping[str, str] = MappingProxyType(JSON)
    ) -> httpx.Response:
        """Posts a body; a broken connection becomes status 599, which no operation declares."""
        try:
            return self.client.post(path, content=body, headers=headers)
        except httpx.TransportError as error:
            return httpx.Response(599, text=repr(error))

    def lives(self) -> bool:
        """Asks for `/health`; a server that does not respond in time does not live."""
        try:
            return self.client.get("/health").status_code == 200
        except httpx.TransportError:
            return False


def real(path: str) -> str:
    """Replaces the parameters of a path with an unknown id."""
    return re.sub(r"{[^}]*}", SOME_ID, path)


# --- the checks: each returns its findings --------------------------------------------------------


def check_endpoints(subject: Subject) -> Findings:
    """All endpoints exist, return what they should, and predict one entry per row, in order."""
    found = Findings()
    health = subject.get("/health")
    found.expect(health.json() == {"status": "ok", "health": "ok"}, f"GET /health: {health.text}")
    ready = subject.get("/ready")
    found.expect(ready.status_code == 200, f"GET /ready: {ready.status_code}")
    if not subject.predicts:
        return found
    for (path, method), refusals in PREDICTS.items():
        if subject.decides and path not in OF_DECISIONS:
            continue
        if (path, method) not in subject.operations:
            found.append(f"{method} {path} is not declared")
        elif missing := refusals - subject.declared(path, method):
            found.append(f"{method} {path} does not declare {missing}")
    if subject.decides:
        check_order_of_rows(subject, found)
        return found
    metadata = subject.get("/metadata").json()
    labels = subject.get("/label").json()
    names = [labels.get(str(index)) for index in range(len(labels))]
    found.expect(names == metadata.get("labels"), f"GET /label: {labels}")
    if not subject.is_partial:
        found.expect(not DESCRIBED - set(metadata), f"/metadata has no {DESCRIBED - set(metadata)}")
        book = {name: metadata.get(name) for name in BOOK}
        found.expect(book == described_by_the_book(subject, names, found), f"/metadata: {book}")
    check_predictions(subject, names, found)
    return found


def described_by_the_book(
    subject: Subject, names: list[str | None], found: Findings
) -> dict[str, Any]:
    """Returns what `/metadata` has to say under the names of the book."""
    prediction = predicted(subject, "/predict/test", found)
    data_type, structure = subject.rows.structure
    return {
        "data_type": data_type,
        "data_structure": structure,
        "data_sample": [subject.rows.sample],
        "prediction_type": "float32",
        "prediction_structure": f"(1,{len(names)})",
        "prediction_sample": [pytest.approx(entry, abs=1e-5) for entry in prediction],
    }


def check_order_of_rows(subject: Subject, found: Findings) -> list[Any]:
    """Entries are in the order of the rows and the same in a batch as alone, even at bounds."""
    data = subject.rows.valid
    together = predicted(subject, "/predict", found, data)
    found.expect(len(together) == len(data), f"{len(data)} rows: {len(together)} entries")
    for row, entry in zip(data, together, strict=False):
        alone = predicted(subject, "/predict", found, [row])
        is_equal = [entry] == [pytest.approx(one, abs=1e-5) for one in alone]
        found.expect(is_equal, f"{str(row)[:50]}: {entry}, {alone}")
    return together


def check_predictions(subject: Subject, names: list[str], found: Findings) -> None:
    """The probabilities of a row add up to 1, and its label is the most probable."""
    sample, data = subject.rows.sample, subject.rows.valid
    together = check_order_of_rows(subject, found)
    for row, entry in zip(data, together, strict=False):
        # While all services run, no row gets null.
        is_whole = bool(entry) and len(entry) == len(names) and None not in entry
        is_one = is_whole and sum(entry) == pytest.approx(1, abs=1e-3)
        found.expect(is_one, f"{str(row)[:50]}: {entry}")
    labels = predicted(subject, "/predict/label", found, data)
    expected = [names[row.index(max(row))] for row in together if row and len(row) == len(names)]
    found.expect(labels == expected, f"/predict/label: {labels}, not {expected}")
    for path in ("/predict", "/predict/label"):
        of_sample = predicted(subject, path, found, [sample])
        of_test = predicted(subject, path.replace("/predict", "/predict/test"), found)
        found.expect(of_test == of_sample, f"{path} of the sample: {of_test}, not {of_sample}")


def predicted(
    subject: Subject, path: str, found: Findings, rows: Sequence[object] | None = None
) -> list[Any]:
    """Requests a prediction and, if it is a job, waits until the job has ended."""
    method = "post" if rows else "get"
    answer = subject.client.request(method, path, json=subject.body(rows) if rows else None)
    if not {answer.status_code} & subject.declared(path, method) & {200, 202}:
        found.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")
        return []
    if answer.status_code == 202:
        job = answer.headers["location"]

        def is_over() -> bool:
            return subject.get(job).json()["status"] not in ("queued", "running")

        found.wait_until(is_over, f"the job of {path}", subject.patience_seconds)
        answer = subject.get(job)
    if subject.asks_services:
        return of_services(answer.json())
    prediction: list[Any] = answer.json().get("prediction") or []
    return prediction


def of_services(answer: dict[str, Any]) -> list[list[float]]:
    """Returns for each row what all services say of it, one after the other."""
    columns = [answer[name]["prediction"] for name in sorted(answer)]
    return [[value for part in row for value in part] for row in zip(*columns, strict=True)]


def check_bad_bodies(subject: Subject) -> Findings:
    """Every body of the corpus is rejected with its reason, and no response echoes it."""
    found = Findings()
    for path in subject.with_body:
        required = bool(subject.body_schema(path).get("required"))
        corpus = of_any_list() if subject.takes_list(path) else of_any_object(required)
        if path.startswith("/predict"):
            corpus |= of_entries(subject.rows)
            assert len(corpus) >= 55
        for name, (body, reason) in corpus.items():
            answer = subject.post(real(path), body)
            what = f"{path}, {name}: {answer.status_code} {answer.text[:200]}"
            is_refused = answer.status_code == subject.invalid(path)
            found.expect(is_refused and reason in answer.text, what)
            found.expect(len(answer.content) < LONGEST_ANSWER_BYTES, f"{path}, {name}: an echo")
    if subject.predicts:
        # Describing each of thousands of invalid values would stop the event loop for long.
        nulls = json.dumps(subject.body(subject.rows.nulls)).encode()
        reasons = subject.post("/predict", nulls).json().get("detail", [])
        found.expect(len(reasons) == 1, f"/predict, only invalid values: {len(reasons)} reasons")
    found.expect(subject.lives(), "it does not live any more")
    return found


def check_unsupported_bodies(subject: Subject) -> Findings:
    """A body in another format gets a 415 that names it; JSON is read whatever its headers say."""
    found = Findings()
    for path in subject.with_body:
        is_predict = path.startswith("/predict")
        valid = json.dumps(subject.body([subject.rows.sample]) if is_predict else {}).encode()
        for name, (body, headers, reason) in unsupported(valid).items():
            if headers["content-type"] in subject.media_types(path) - {"application/json"}:
                continue
            answer = subject.post(real(path), body, headers)
            what = f"{path}, {name}: {answer.status_code} {answer.text[:200]}"
            found.expect(answer.status_code == 415 and reason in answer.text, what)
            accepted = answer.headers.get("accept-encoding")
            wanted = "identity" if "content-encoding" in headers else None
            found.expect(accepted == wanted, f"{path}, {name}: Accept-Encoding: {accepted}")
        expected = subject.post(real(path), valid).status_code
        for name, value in (
            ("content-type", "application/x-www-form-urlencoded"),
            ("content-type", "application/json; charset=utf-8"),
            ("content-encoding", "identity"),
        ):
            answer = subject.post(real(path), valid, {name: value})
            what = f"{path}, {name}: {value}: {answer.status_code}"
            found.expect(answer.status_code == expected, what)
    return found


def check_bodies_at_the_limit(subject: Subject) -> Findings:
    """Bodies of the maximum size with many small errors are rejected, and the server survives."""
    found = Findings()
    if not subject.bounded:
        return found
    limit = limit_of(subject)
    if not limit:
        return Findings(["10 MB are not refused"])
    rows = subject.rows if subject.predicts else None
    for name, body in at_the_limit(limit, rows).items():
        answer = subject.post(subject.bounded, body)
        what = f"{name}, {len(body)} bytes: {answer.status_code} {answer.text[:200]}"
        is_refused = answer.status_code in (413, *(subject.served - {200, 202}))
        found.expect(is_refused, what)
        found.expect(len(answer.content) < LONGEST_ANSWER_BYTES, f"{name}: an echo")
        found.expect(subject.lives(), f"{name}: it does not live any more")
        # Describing so many would stop the event loop for long.
        if sum(map(body.count, b"[{:")) > MOST_PARTS + (rows.most if rows else 0):
            found.expect("lists, objects and fields" in answer.text, f"{what}: it was parsed")
    return found


def check_large_body(subject: Subject) -> Findings:
    """100 MB are rejected, with or without Content-Length, while other requests succeed."""
    found = Findings()
    if not subject.bounded:
        return found
    statuses: list[int] = []
    over = threading.Event()

    def others() -> None:
        with httpx.Client(base_url=subject.url, timeout=subject.patience_seconds) as client:
            while not over.is_set():
                statuses.append(client.get("/ready").status_code)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        found.wait_until(lambda: bool(statuses), "the others", subject.patience_seconds)
        for framing in (f"Content-Length: {LARGE_BYTES}", "Transfer-Encoding: chunked"):
            status = send_large_body(subject, framing)
            found.expect(status == 413, f"100 MB, {framing}: {status}")
    finally:
        over.set()
        thread.join()
    found.expect(set(statuses) == {200}, f"the others: {set(statuses)}")
    return found


def send_large_body(subject: Subject, framing: str) -> int:
    """Sends 100 MB, even after a rejection, and returns the status of the response."""
    block = MEGABYTE if "Length" in framing else b"%x\r\n%b\r\n" % (len(MEGABYTE), MEGABYTE)
    status = 0
    with opened(subject, f"POST {subject.bounded} HTTP/1.1\nHost: a\n{framing}") as connection:
        # A server that has rejected the body may close the connection at any time.
        with suppress(ConnectionError):
            for _ in range(LARGE_BYTES // len(MEGABYTE)):
                if not status and select.select([connection], [], [], 0)[0]:
                    status = status_of(connection)
                connection.sendall(block)
            if "chunked" in framing:
                connection.sendall(b"0\r\n\r\n")
        return status or status_of(connection)


def check_slow_body(subject: Subject) -> Findings:
    """A body that stops arriving or trickles gets a 408 at its deadline."""
    found = Findings()
    if not subject.bounded:
        return found
    head = f"POST {subject.bounded} HTTP/1.1\nHost: a\nContent-Length: 5000"
    for part in (b"", b'{"data"'):
        with opened(subject, head, part) as connection:
            status = status_of(connection)
            found.expect(status == 408, f"{part!r} and no more: {status}")
    with opened(subject, head) as connection, suppress(ConnectionError):
        answers = partial(answers_to_a_byte, connection)
        found.wait_until(answers, "an answer to single bytes", subject.patience_seconds)
        status = status_of(connection)
        found.expect(status == 408, f"a byte now and then: {status}")
    return found


def answers_to_a_byte(connection: socket.socket) -> bool:
    """Sends one more byte and tells whether there is a response."""
    connection.sendall(b" ")
    return bool(select.select([connection], [], [], 0.05)[0])


def check_requests_at_once(subject: Subject) -> Findings:
    """Of 64 simultaneous requests two are served and the others get a 503; probes have no limit.

    The server is suspended while they are sent, so it finds all of them when it resumes.
    """
    found = Findings()
    path, body = something_to_ask(subject)
    if 503 not in subject.declared(path, "post"):
        return found
    request = f"POST {path} HTTP/1.1\nHost: a\nContent-Length: {len(body)}"
    with ExitStack() as stack:
        probe = "GET /health HTTP/1.1\nHost: a"
        heads = [*[(request, body)] * 64, (probe, b""), (probe.replace("health", "ready"), b"")]
        connections = []
        for _ in heads:
            connection = stack.enter_context(opened(subject, probe))
            read_response(connection)
            connections.append(connection)
        with suspended(subject.server):
            for connection, (head, content) in zip(connections, heads, strict=True):
                send(connection, head, content)
        responses = [read_response(connection) for connection in connections]
    statuses = [response.status for response in responses]
    served = sum(status in subject.served for status in statuses[:64])
    found.expect(served == 2, f"{served} of 64 requests were served")
    found.expect(set(statuses[:64]) <= subject.served | {503}, f"{set(statuses)}")
    found.expect(statuses[64:] == [200, 200], f"/health, /ready: {statuses[64:]}")
    refused = [response for response in responses if response.status == 503]
    retry_after = {response.getheader("retry-after") for response in refused}
    found.expect(retry_after == {"1"}, "a 503 without Retry-After")
    found.expect(subject.get(subject.counted or "/ready").status_code == 200, "a place is lost")
    return found


def check_slow_clients(subject: Subject) -> Findings:
    """300 clients that stop in the middle of a body do not affect other clients."""
    found = Findings()
    if not subject.bounded:
        return found
    head = f"POST {subject.bounded} HTTP/1.1\nHost: a\nContent-Length: 50\nExpect: 100-continue"
    with ExitStack() as stack:
        for _ in range(300):
            connection = stack.enter_context(opened(subject, head))
            # 100 when the server has seen the head, 503 where it has too many.
            connection.recv(1)
            connection.sendall(b'{"data"')
        paths = [subject.counted or "/ready", "/ready"] * 20
        statuses = {subject.get(path).status_code for path in paths}
        found.expect(statuses == {200}, f"beside 300 slow clients: {statuses}")
    return found


def check_clients_that_leave(subject: Subject) -> Findings:
    """The bytes of a body no longer count after its client has disconnected."""
    found = Findings()
    if not subject.bounded:
        return found
    limit = limit_of(subject)
    head = f"POST {subject.bounded} HTTP/1.1\nHost: a\nContent-Length: {limit}"
    most = b" " * (limit * 9 // 10)
    for _ in range(8):
        with opened(subject, head, most):
            pass

    def is_free() -> bool:
        with opened(subject, head, most) as connection:
            send_all(connection, b" " * (limit - len(most)))
            return status_of(connection) in subject.served

    found.wait_until(is_free, "the bytes to be free", subject.patience_seconds)
    with ExitStack() as stack:

        def is_full() -> bool:
            # Those that wait are rejected at their deadline, so there are always new ones.
            connections = [stack.enter_context(opened(subject, head, most)) for _ in range(8)]
            readable = select.select(connections, [], [], 0.2)[0]
            return 503 in [status_of(connection) for connection in readable]

        found.wait_until(is_full, "too many bodies to be refused", subject.patience_seconds)
    return found


def limit_of(subject: Subject) -> int:
    """Returns the limit of a body in bytes, as the 413 states it; 0 without one."""
    refused = subject.post(subject.bounded or "", MEGABYTE * 10)
    limit = re.search(r"larger than (\d+) bytes", refused.text)
    return int(limit[1]) if refused.status_code == 413 and limit else 0


HEADS = {
    "a header": "GET /health HTTP/1.1\nHost: a\nX: ",
    "a request line": "GET /health?",
}


def check_large_head(subject: Subject) -> Findings:
    """A head of 50 MB gets a 431 and costs no memory."""
    found = Findings()
    before = subject.server.memory_mb()
    for what, head in HEADS.items():
        with opened(subject, head, end="") as connection, suppress(ConnectionError):
            # A server that does not read in time has no limit.
            with suppress(TimeoutError):
                for _ in range(50):
                    connection.sendall(MEGABYTE.replace(b" ", b"x"))
                    if select.select([connection], [], [], 0)[0]:
                        break
            status = status_of(connection)
            found.expect(status == 431, f"{what} without an end: {status}")
        with opened(subject, f"{head}{'x' * 100_000} HTTP/1.1\nHost: a") as connection:
            status = status_of(connection)
            # The parser itself finds a URL of more than 64 KiB invalid.
            found.expect(status in (400, 431), f"{what} of 100 kB: {status}")
        with opened(subject, f"{head}{'x' * 50_000}", end="") as connection:
            # By the time of this response, the server has read the first part.
            found.expect(subject.lives(), "it does not live any more")
            send(connection, f"{'x' * 50_000} HTTP/1.1\nHost: a")
            status = status_of(connection)
            found.expect(status in (400, 431), f"{what} of 100 kB in two parts: {status}")
    grown = subject.server.memory_mb() - before
    found.expect(grown < 20, f"heads have cost {grown:.0f} MB")
    found.expect(subject.lives(), "it does not live any more")
    return found


def check_slow_head(subject: Subject) -> Findings:
    """A connection without a complete head is closed at the deadline."""
    found = Findings()
    for head in ("", "GET /hea"):
        with opened(subject, head, end="") as connection:
            connection.settimeout(subject.patience_seconds)
            try:
                closed = connection.recv(1) == b""
            except TimeoutError:
                closed = False
            found.expect(closed, f"{head!r} and no more: it stays open")
    return found


def check_unread_responses(subject: Subject) -> Findings:
    """A client that never reads its responses is disconnected, and its place is free again."""
    found = Findings()
    if not subject.operations:
        return found
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(subject.address)
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 2_000)
        cut_off = select.poll()
        # Without an event to wait for, an error or a hang-up is still reported.
        cut_off.register(connection, 0)
        events = cut_off.poll(subject.patience_seconds * 1000)
        found.expect(bool(events), "a client that never reads keeps its connection")
    found.expect(subject.get(subject.counted or "/ready").status_code == 200, "a place is lost")
    return found


def check_pipelining(subject: Subject) -> Findings:
    """2,000 requests that are sent without waiting are answered in order."""
    found = Findings()
    pair = b"".join(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in (b"/health", b"/none"))
    received = b""
    with opened(subject, "GET /health HTTP/1.1\nHost: a") as connection:
        read_response(connection)
        sender = threading.Thread(target=send_all, args=(connection, pair * 1_000))
        sender.start()
        with suppress(TimeoutError, ConnectionError):
            while received.count(b"HTTP/1.1 ") < 2_000 and (more := connection.recv(1_000_000)):
                received += more
        sender.join()
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", received)
    found.expect(statuses == [b"200", b"404"] * 1_000, f"{len(statuses)} of 2,000 responses")
    return found


OFFERS = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAoAAA",
    "WebSocket": "Upgrade: websocket\nSec-WebSocket-Version: 13\nConnection: keep-alive, Upgrade",
}


def check_offers_of_a_protocol(subject: Subject) -> Findings:
    """A request that offers to change the protocol is answered as it is without the offer."""
    found = Findings()
    path, body = something_to_ask(subject)
    chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    chunks = chunk + b"0\r\n\r\n"
    framings = {f"Content-Length: {len(body)}": body, "Transfer-Encoding: chunked": chunks}
    last = b"GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    for framing, content in framings.items():
        head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\nHost: a\n{framing}"
        expected = answers_to(subject, head, content + last)
        found.expect(len(expected) == 2, f"{framing}: {expected}")
        for name, offer in OFFERS.items():
            offering, what = f"{head}\n{offer}", f"{name}, {framing}"
            again = f"{offering}\n\n".replace("\n", "\r\n").encode() + content
            answers = answers_to(subject, offering, content + again * 50 + last)
            found.expect(answers == expected[:1] * 51 + expected[1:], f"{what}: {answers[:3]}")
            if body:
                # The server asks for a body once it has read the head.
                with opened(subject, f"{offering}\nExpect: 100-continue") as connection:
                    found.expect(status_of(connection) == 100, f"{what}: no 100")
                    answers = answers_on(connection, content + last)
                found.expect(answers == expected, f"{what}, later: {answers}")
            for old in (offering.replace("HTTP/1.1", "HTTP/1.0"), f"{offering}\nConnection: close"):
                answers = answers_to(subject, old, content + last)
                found.expect(answers == expected[:1], f"{what}, not kept alive: {answers}")
    return found


def answers_to(subject: Subject, head: str, content: bytes) -> list[bytes]:
    with opened(subject, head, content) as connection:
        return answers_on(connection)


def answers_on(connection: socket.socket, content: bytes = b"") -> list[bytes]:
    """Returns the status of each response until the end, and "Invalid JSON" if that is a reason."""
    received = b""
    with suppress(ConnectionError, TimeoutError):
        connection.sendall(content)
        while more := connection.recv(1_000_000):
            received += more
    return [b"".join(found) for found in re.findall(rb"HTTP/1\.1 (\d+)|(Invalid JSON)", received)]


# Bodies that every server refuses, and what its log says of them.
REFUSED_BODIES: dict[str, tuple[bytes, dict[str, str]]] = {
    "415 the body has a Content-Encoding": (MARK.encode(), JSON | {"content-encoding": MARK}),
    "415 the body is not UTF-8": (json.dumps(MARK).encode("utf-16"), JSON),
    "415 the body is not JSON": (MARK.encode(), {"content-type": f"text/{MARK}"}),
    "422 json_invalid": (f'{{"{MARK}'.encode(), JSON),
    "422 model_type": (f'["{MARK}"]'.encode(), JSON),
    "422 too_many_errors": (json.dumps({f"{MARK}{n}": 0 for n in range(1_100)}).encode(), JSON),
    "422 too_many_parts": (f'{{"{MARK}": {"[" * 2 * MOST_PARTS}'.encode(), JSON),
}


def check_log(subject: Subject) -> Findings:
    """The log counts refusals by reason, in a line a second, and repeats nothing of a request."""
    found = Findings()
    log = subject.server.log
    reason = "400 the request is not valid HTTP"
    old = refusals_in(log)
    with opened(subject, "NONSENSE") as connection:
        refusal_on(connection)
    # The line with this request includes everything that was refused before.
    found.wait_until(
        lambda: refusals_in(log)[reason] > old[reason], "the log", subject.patience_seconds
    )
    before, lines_before = refusals_in(log), len(log.read_text("utf-8").splitlines())
    began = time.monotonic()
    refused = Counter(send_what_is_refused(subject, found))

    def is_logged() -> bool:
        return refusals_in(log) - before == refused

    found.wait_until(is_logged, f"the log to count {refused}", subject.patience_seconds)
    lines = log.read_text("utf-8").splitlines()[lines_before:]
    # A slow machine only allows more lines.
    are_few = len(lines) <= time.monotonic() - began + 1
    found.expect(are_few, f"{len(lines)} lines for {refused.total()} refusals")
    found.expect(MARK not in "".join(lines), "the log repeats a request")
    return found


def send_what_is_refused(subject: Subject, found: Findings) -> Iterator[str]:
    """Sends requests that are refused, and yields what the log should say of each."""
    heads = {
        "400 the request is not valid HTTP": f"NONSENSE {MARK}",
        "431 the head is larger than 65536 bytes": f"GET /health HTTP/1.1\nX: {MARK * 20_000}",
    }
    for reason, head in heads.items():
        for _ in range(20):
            # On a busy machine the connection may be closed before this has read the response.
            with suppress(ConnectionError), opened(subject, head) as connection:
                refusal_on(connection)
            yield reason
    for path in subject.with_body:
        bodies = REFUSED_BODIES
        if subject.takes_list(path):
            # Whatever is no list has one error.
            bodies = {name: each for name, each in bodies.items() if "errors" not in name}
        for usual_reason, (body, headers) in bodies.items():
            reason = usual_reason.replace("422", str(subject.invalid(path)))
            for _ in range(20 if path == subject.with_body[0] else 1):
                answer = subject.post(real(path), body, headers)
                is_expected = reason.startswith(str(answer.status_code))
                found.expect(is_expected, f"{path}, {reason}: {answer.status_code}")
                yield reason
    if subject.bounded:
        for length_bytes in (LARGE_BYTES, 1_000):
            head = f"POST {subject.bounded} HTTP/1.1\nHost: a\nContent-Length: {length_bytes}"
            with opened(subject, head, MARK.encode()) as connection:
                yield refusal_on(connection)


def refusal_on(connection: socket.socket) -> str:
    """Reads an error response and returns its status and reason; without one "nothing"."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        return f"{response.status} {json.loads(response.read())['detail']}"
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return "nothing"


def refusals_in(log: Path) -> Counter[str]:
    """Adds up the refusals of all lines of a log, by status and reason."""
    counted: Counter[str] = Counter()
    for line in re.findall(r"refused: (.*)\n", log.read_text("utf-8")):
        for count, reason in re.findall(r"(\d+) x (.*?)(?:; |$)", line):
            counted[reason] += int(count)
    return counted


NO_HTTP = (
    "POST /predict HTTP/1.1\nHost: a\nContent-Length: x",
    "POST /predict HTTP/1.1\nHost: a\nContent-Length: -5",
    "POST /predict HTTP/1.1\nHost: a\nContent-Length: 5\nTransfer-Encoding: chunked",
    "POST /predict HTTP/1.1\nHost: a\nBad header\nContent-Length: 0",
    "\x16\x03\x01",
    "NONSENSE",
)


def check_what_is_not_http(subject: Subject) -> Findings:
    """Anything that is not HTTP gets a 400, but no request before it loses its response."""
    found = Findings()
    answers = answers_to(subject, "GET /health HTTP/1.1\nHost: a", b"NONSENSE\r\n\r\n")
    found.expect(answers == [b"200"], f"a request before what is not HTTP: {answers}")
    for head in NO_HTTP:
        with opened(subject, head) as connection:
            connection.shutdown(socket.SHUT_WR)
            status = status_of(connection)
        found.expect(status == 400, f"{head!r}: {status}")
    return found


def check_methods_and_paths(subject: Subject) -> Findings:
    """Undeclared methods get a 405, unknown paths a 404."""
    found = Findings()
    declared: dict[str, set[str]] = {"/health": {"GET"}, "/ready": {"GET"}}
    for path, method in subject.operations:
        declared.setdefault(path, set()).add(method.upper())
    for path, methods in declared.items():
        for method in set(METHODS) - methods:
            # An id may be any word, so the path may also match that of another operation.
            if any(re.fullmatch(pattern_of(other), path) for other in declared if other != path):
                continue
            status = subject.client.request(method, real(path)).status_code
            found.expect(status == 405, f"{method} {path}: {status}")
    elsewhere = ("/nothing", "//predict/test", "/ready/1", "/%2e%2e/%2e%2e/etc/passwd")
    for path in (*elsewhere, f"/{'x' * 10_000}"):
        answer = subject.get(path)
        found.expect(answer.status_code == 404, f"GET {path[:50]}: {answer.status_code}")
        found.expect(len(answer.content) < LONGEST_ANSWER_BYTES, f"GET {path[:50]}: an echo")
    return found


def pattern_of(path: str) -> str:
    return re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(path))


def check_docs(subject: Subject) -> Findings:
    """No page loads anything from another host, and `/docs` has valid examples and groups."""
    found = Findings()
    for path in ("/", "/docs", "/redoc"):
        page = subject.get(path)
        if page.headers["content-type"].startswith("text/html"):
            found.extend(
                f"{path} refers to {url}" for url in re.findall(r"https?://[^'\"]+", page.text)
            )
            policy = page.headers.get("content-security-policy", "")
            found.expect(policy.startswith("default-src "), f"{path} allows any host: {policy!r}")
            for file in re.findall(r' (?:href|src)="([^"?]+)"', page.text):
                status = subject.client.get(file).status_code if "://" not in file else 200
                found.expect(status == 200, f"{file} of {path}: {status}")
    if subject.operations:
        found.expect("openapi.json" in subject.get("/docs").text, "/docs shows nothing")
    for (path, method), operation in subject.operations.items():
        found.expect(bool(operation.get("tags")), f"{method} {path} is in no group of /docs")
    for path in subject.with_body:
        example = subject.body_schema(path).get("example")
        headers = JSON | {
            parameter["name"]: str(parameter.get("example", ""))
            for parameter in subject.operations[path, "post"].get("parameters", [])
            if parameter["in"] == "header" and parameter.get("required")
        }
        status = subject.post(real(path), json.dumps(example).encode(), headers).status_code
        # An ID in the example may be unknown, and what it adds may exist.
        found.expect(status in (200, 201, 202, 404, 409), f"{path}, example {example}: {status}")
    return found


def check_generated_requests(subject: Subject) -> Findings:
    """No generated request gets an undeclared response."""
    if not subject.operations:
        return Findings()
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *["run", f"{subject.url}/openapi.json", "--max-examples", str(EXAMPLES)],
        *["--seed", "1", "--no-color"],
        *["--exclude-checks", ",".join(unfit_checks(subject))],
    ]
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "schemathesis.toml").write_text(REJECTIONS, "utf-8")
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
    return Findings([run.stdout[-5_000:]] if run.returncode else [])


def unfit_checks(subject: Subject) -> list[str]:
    """Returns the names of Schemathesis's checks that demand more than HTTP does."""
    # FastAPI's own response to OPTIONS lists only the methods of the path's first route.
    found = ["unsupported_method"]
    # A schema describes JSON, but not which bytes are a picture or a tensor.
    bodies = [operation.get("requestBody", {}) for operation in subject.operations.values()]
    if any(set(body.get("content", {})) - {"application/json"} for body in bodies):
        found.append("positive_data_acceptance")
    # Nor does it say which times are in the past.
    schemas = map(subject.resolved, subject.definitions.values())
    fields = [field for schema in schemas for field in schema.get("properties", {}).values()]
    if any(field.get("format") == "date-time" for field in fields):
        found.append("positive_data_acceptance")
    parameters = [
        parameter["name"]
        for operation in subject.operations.values()
        for parameter in operation.get("parameters", [])
    ]
    # Reusing a key for another request gets a 422 even if the request is valid.
    if "idempotency-key" in parameters:
        found.append("positive_data_acceptance")
    return found


def check_stop(subject: Subject) -> Findings:
    """After SIGTERM under load every accepted request gets a whole response; then it exits."""
    found = Findings()
    path, body = something_to_ask(subject)
    request = f"{'POST' if body else 'GET'} {path} HTTP/1.1\nHost: a\nConnection: close"
    answered: list[int] = []
    with ExitStack() as stack:
        held = []
        if body:
            head = f"{request}\nContent-Length: {len(body)}\nExpect: 100-continue"
            held = [stack.enter_context(opened(subject, head)) for _ in range(16)]
            for connection in held:
                # Only an accepted request gets a 100.
                found.expect(status_of(connection) == 100, "a request was not accepted")
        kept: list[int] = []
        arguments = [
            *[(ask_until_refused, answered)] * 8,
            *[(ask_until_closed, kept)] * 40,
        ]
        threads = [
            threading.Thread(target=ask, args=(subject, path, body, statuses, found))
            for ask, statuses in arguments
        ]
        for thread in threads:
            thread.start()
        found.wait_until(lambda: len(answered) >= 200, "200 answers", PATIENCE_SECONDS)
        # A connection that the server has not accepted yet may be reset.
        found.wait_until(lambda: len(kept) >= 40, "the kept-alive connections", PATIENCE_SECONDS)
        subject.server.terminate()
        for connection in held:
            try:
                connection.sendall(body)
                found.expect(status_of(connection) in subject.served, "not answered")
            except OSError as error:
                found.append(f"an accepted request was not answered: {error!r}")
        for thread in threads:
            thread.join()
    code = subject.server.wait(PATIENCE_SECONDS)
    found.expect(code in (0, -signal.SIGTERM), f"it ended with exit code {code}")
    found.expect(set(answered) <= subject.served, f"{set(answered)}")
    return found


def something_to_ask(subject: Subject) -> tuple[str, bytes]:
    """Returns a path and a body for it, preferably those of a prediction."""
    if subject.predicts:
        return "/predict", json.dumps(subject.body([subject.rows.sample])).encode()
    return (subject.bounded, b"{}") if subject.bounded else ("/ready", b"")


def ask_until_refused(
    subject: Subject, path: str, body: bytes, answered: list[int], found: Findings
) -> None:
    """Sends requests on new connections until the server is gone.

    An accepted request must get a whole response; others are refused, or closed before the first
    byte of a response.
    """
    while True:
        connection = http.client.HTTPConnection(*subject.address, timeout=PATIENCE_SECONDS)
        with closing(connection):
            try:
                connection.request("POST" if body else "GET", path, body)
                answer = connection.getresponse()
            except (OSError, http.client.RemoteDisconnected):
                return
            try:
                json.loads(answer.read())
                answered.append(answer.status)
            except (OSError, ValueError, http.client.HTTPException) as error:
                found.append(f"an answer was cut short: {error!r}")


def ask_until_closed(
    subject: Subject, path: str, body: bytes, answered: list[int], found: Findings
) -> None:
    """Sends requests on one connection until a response carries `Connection: close`.

    That client reconnects elsewhere; a client whose connection breaks has lost a request.
    """
    connection = http.client.HTTPConnection(*subject.address, timeout=PATIENCE_SECONDS)
    is_first = True
    with closing(connection):
        while True:
            try:
                connection.request("POST" if body else "GET", path, body)
                response = connection.getresponse()
                json.loads(response.read())
            except (OSError, ValueError, http.client.HTTPException) as error:
                found.append(f"a kept-alive connection has lost a request: {error!r}")
                return
            if is_first:
                answered.append(response.status)
            is_first = False
            found.expect(response.status in subject.served, f"kept alive: {response.status}")
            if response.will_close:
                return


@contextmanager
def opened(
    subject: Subject, head: str, body: bytes = b"", end: str = "\n\n"
) -> Iterator[socket.socket]:
    """Opens a connection and sends the beginning of a request."""
    with socket.create_connection(subject.address, subject.patience_seconds) as connection:
        send(connection, head, body, end)
        yield connection


def send(connection: socket.socket, head: str, body: bytes = b"", end: str = "\n\n") -> None:
    connection.sendall((head + end).replace("\n", "\r\n").encode() + body)


def send_all(connection: socket.socket, content: bytes) -> None:
    """Sends the content, unless the server closes the connection first."""
    with suppress(OSError):
        connection.sendall(content)


def read_response(connection: socket.socket) -> http.client.HTTPResponse:
    """Reads a whole response and leaves the connection open."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response


def status_of(connection: socket.socket) -> int:
    """Reads the head of a response and returns its status; 0 if there is none."""
    head = b""
    try:
        # Byte by byte, because another response follows an interim one.
        while not head.endswith(b"\r\n\r\n"):
            head += (byte := connection.recv(1))
            if not byte:
                break
    except (TimeoutError, ConnectionError):
        return 0
    return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else 0


# --- every server ---------------------------------------------------------------------------------


def servers() -> list[tuple[Path, str]]:
    """Returns the pattern and the service of every server of the repository."""
    found = [
        (pattern, service.name)
        for pattern in patterns()
        for service in asgi_services(load(pattern))
    ]
    if not found:
        raise FileNotFoundError("no compose file has a service that uvicorn runs")
    return found


def programs() -> list[tuple[Path, str]]:
    """Returns a server of each program, the one with the fewest settings.

    Servers of one program differ in their settings, such as the directory of their model. An
    antipattern may have a model that is slow on purpose, by a setting.
    """
    found: dict[tuple[Path, str], tuple[Path, str]] = {}

    def settings(server: tuple[Path, str]) -> int:
        return len(load(server[0]).services[server[1]].environment)

    for pattern, name in sorted(servers(), key=settings):
        found.setdefault(program_of(pattern, name), (pattern, name))
    return list(found.values())


def program_of(pattern: Path, name: str) -> tuple[Path, str]:
    """Returns the directory and the command of a server, without its port."""
    compose = load(pattern)
    service = compose.services[name]
    ports = set(map(str, service.ports))
    command = " ".join(word for word in service.command if word not in ports)
    return compose.directory_of(service), command


def protocols() -> list[tuple[Path, str]]:
    """Returns a server of each HTTP protocol of uvicorn, in the pattern that has its original."""
    found: dict[Path, tuple[Path, str]] = {}
    for pattern, name in programs():
        compose = load(pattern)
        service = compose.services[name]
        # Dockerfiles set the protocol that commands do not name.
        named = re.search(r"--http [\w.]*?(\w+):", " ".join(service.command))
        package = compose.directory_of(service) / package_of(pattern, service)
        file = package / f"{named[1] if named else 'guard'}.py"
        if file.is_file() and not read_mark(ROOT, file.relative_to(ROOT).as_posix()):
            found.setdefault(file, (pattern, name))
    if not found:
        raise FileNotFoundError("no server has the original of an HTTP protocol")
    return list(found.values())


def name_of(found: tuple[Path, str]) -> str:
    pattern, service = found
    return f"{pattern.name}/{service}"


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Compose]:
    """Copies a pattern and trains its model once for all of its servers."""

    @cache
    def copied(pattern: Path) -> Compose:
        return copy_of(pattern, tmp_path_factory.mktemp(pattern.name))

    return copied


Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture(scope="module", params=servers(), ids=name_of)
def start(request: pytest.FixtureRequest, copies: Callable[[Path], Compose]) -> Iterator[Start]:
    """Runs the dependencies of a server and returns a function that starts it."""
    pattern, service = request.param
    compose = copies(pattern)
    # Only the limits of the server under test are to be reached.
    with run_around(compose, service, MAX_REQUESTS_AT_ONCE="256"):
        yield partial(run_service, compose, service, **patient_settings(compose, service))


def patient_settings(compose: Compose, service: str) -> dict[str, str]:
    """Returns settings with which a server waits for others, however busy the machine is."""
    names = variables_of(compose.pattern_dir, compose.services[service])
    deadlines = {name for name in names if name.endswith("DEADLINE_SECONDS")}
    return dict.fromkeys(deadlines - {"CLIENT_DEADLINE_SECONDS"}, str(PATIENCE_SECONDS))


@pytest.fixture(scope="module")
def subject(start: Start) -> Iterator[Subject]:
    with start() as server, Subject(server) as subject:
        yield subject


@pytest.fixture(scope="module")
def strict(start: Start) -> Iterator[Subject]:
    with start(**STRICT) as server, Subject(server) as subject:
        yield subject


CHECKS = (
    check_bad_bodies,
    check_unsupported_bodies,
    check_bodies_at_the_limit,
    check_large_body,
    check_methods_and_paths,
    check_docs,
    check_generated_requests,
)
STRICT_CHECKS = (check_requests_at_once,)
# A marked copy is tested once, in its original. That a program has the protocol at all is what the
# checks of large bodies and of requests at once find out.
PROTOCOL_CHECKS = (
    check_large_head,
    check_slow_clients,
    check_pipelining,
    check_offers_of_a_protocol,
    check_what_is_not_http,
    check_log,
)
STRICT_PROTOCOL_CHECKS = (
    check_slow_body,
    check_slow_head,
    check_unread_responses,
    check_clients_that_leave,
)
Check = Callable[[Subject], Findings]

# What a program does whatever its settings are: of several servers of one, the first is attacked.
of_a_program = pytest.mark.parametrize(
    "start", programs(), ids=name_of, indirect=True, scope="module"
)

# What only the HTTP protocol does.
of_a_protocol = pytest.mark.parametrize(
    "start", protocols(), ids=name_of, indirect=True, scope="module"
)


def test_the_server_predicts(subject: Subject) -> None:
    found = check_endpoints(subject)
    assert not found, "\n".join(found)


@of_a_program
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_server_keeps_the_contract(subject: Subject, check: Check) -> None:
    found = check(subject)
    assert not found, "\n".join(found)


@of_a_protocol
@pytest.mark.parametrize("check", PROTOCOL_CHECKS, ids=lambda check: check.__name__)
def test_the_protocol_keeps_the_contract(subject: Subject, check: Check) -> None:
    found = check(subject)
    assert not found, "\n".join(found)


def test_the_endpoints_named_beside_those_of_the_book_exist(
    subject: Subject, request: pytest.FixtureRequest
) -> None:
    pattern, service = request.node.callspec.params["start"]
    (port,) = load(pattern).services[service].ports
    # A file server has no document.
    named = book.endpoints(pattern / "BOOK.md", port) if subject.document else set()
    if subject.predicts and not subject.decides:
        named |= book.endpoints(ROOT / "COMING_FROM_THE_BOOK.md")
    assert named <= set(subject.operations)


def test_the_server_predicts_the_sample_of_its_directory(
    subject: Subject, request: pytest.FixtureRequest
) -> None:
    pattern, service = request.node.callspec.params["start"]
    compose = load(pattern)
    if subject.predicts:
        directory = compose.directory_of(compose.services[service])
        rows = json.loads((directory / "sample.json").read_bytes())["data"]
        if isinstance(subject.rows, Rows):
            widths = {len(row) for row in rows}
            if widths != {subject.rows.width}:
                # Of what callers send, another service makes what it asks this one. Or the sample
                # is for another model that the same program serves.
                asked = any(service in needed_by(compose, other) for other in compose.services)
                assert asked or serves_other_models(pattern, service)
                return
        answer = subject.post("/predict", json.dumps(subject.body(rows)).encode())
        assert answer.status_code in (200, 202), answer.text


def serves_other_models(pattern: Path, name: str) -> bool:
    """Tells whether another service runs the same program with a model directory of its own."""
    directories = {
        load(pattern).services[other].environment.get("MODEL_DIRECTORY")
        for directory, other in servers()
        if directory == pattern and program_of(pattern, other) == program_of(pattern, name)
    }
    return len(directories) > 1


@of_a_program
@pytest.mark.parametrize("check", STRICT_CHECKS, ids=lambda check: check.__name__)
def test_the_server_keeps_its_limits(strict: Subject, check: Check) -> None:
    found = check(strict)
    assert not found, "\n".join(found)


@of_a_protocol
@pytest.mark.parametrize("check", STRICT_PROTOCOL_CHECKS, ids=lambda check: check.__name__)
def test_the_protocol_keeps_its_limits(strict: Subject, check: Check) -> None:
    found = check(strict)
    assert not found, "\n".join(found)


@of_a_program
def test_the_server_stops_in_order(start: Start) -> None:
    # Long enough for the requests that wait for their bodies while others are answered.
    patient = {"CLIENT_DEADLINE_SECONDS": str(PATIENCE_SECONDS), "MAX_REQUESTS_AT_ONCE": "256"}
    with start(**patient) as server, Subject(server) as subject:
        found = check_stop(subject)
    assert not found, "\n".join(found)


@pytest.fixture
def outside_of_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides from ONNX Runtime what makes it send nothing: the tests' own switch, and any CI."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    for variable in VARIABLES_OF_CI.split():
        monkeypatch.delenv(variable, raising=False)


@of_a_program
@pytest.mark.usefixtures("outside_of_ci")
def test_the_server_sends_no_telemetry(start: Start, tmp_path: Path) -> None:
    """ONNX Runtime writes its device ID into the home directory before it sends the first event."""
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with start(**home) as server, Subject(server) as subject:
        assert subject.lives()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("outside_of_ci")
@pytest.mark.skipif(sys.platform != "linux", reason="where it writes was only seen on Linux")
def test_onnx_runtime_alone_leaves_a_device_id(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for switch, sends in (("1", False), ("0", True)):
        environment = os.environ | home | {"ORT_DISABLE_TELEMETRY": switch}
        subprocess.run([sys.executable, "-c", "import onnxruntime"], check=True, env=environment)
        assert bool([*tmp_path.rglob("deviceid")]) == sends


# What loses a request is the protocol; how a program stops is tested above.
@of_a_protocol
@pytest.mark.slow
def test_a_rolling_restart_loses_no_request(start: Start) -> None:
    """Six times, one of two replicas is replaced while 40 clients keep their connections."""
    served: Counter[str] = Counter()
    found = Findings()
    over = threading.Event()
    connecting = threading.Lock()
    with ExitStack() as stack:
        replicas = [stack.enter_context(start()) for _ in range(2)]

        def ask() -> None:
            while not over.is_set():
                with connecting:
                    url = replicas[served.total() % len(replicas)].url
                    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
                    closes = request_once(connection)
                while not (closes or over.is_set()):
                    closes = request_once(connection)
                connection.close()

        def request_once(connection: http.client.HTTPConnection) -> bool:
            try:
                connection.request("GET", "/ready")
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                found.append(repr(error))
                return True
            served[str(response.status)] += 1
            return response.will_close

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for _ in range(6):
            enough = served.total() + 200
            found.wait_until(partial(is_above, served, enough), "requests", PATIENCE_SECONDS)
            # A Service stops sending to a pod before the pod gets SIGTERM.
            with connecting:
                old = replicas.pop(0)
            old.terminate()
            old.wait(PATIENCE_SECONDS)
            replicas.append(stack.enter_context(start()))
        over.set()
        for thread in threads:
            thread.join()
    assert not found, f"{len(found)} of {served.total()} requests were lost: {set(found)}"
    assert set(served) == {"200"}


def is_above(counter: Counter[str], bound: int) -> bool:
    return counter.total() > bound


def test_rows_without_a_finite_answer_are_rejected(
    start: Start, subject: Subject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    asks_others = (
        subject.decides or subject.is_partial or {202, 502} & subject.declared("/predict", "post")
    )
    if not subject.predicts or asks_others:
        # The server of a queue has no model, nor has one that decides by the answers of others.
        return
    if not isinstance(rows := subject.rows, Rows):
        # What a model gets for a text is for the pattern to say, and to test.
        return
    write_model_without_answers(subject.get("/metadata").json(), tmp_path)
    pattern, service = request.node.callspec.params["start"]
    if load(pattern).services[service].without_other_models:
        with pytest.raises(ServerError, match="ModelError"), start(MODEL_DIRECTORY=str(tmp_path)):
            pass
        return
    with start(MODEL_DIRECTORY=str(tmp_path)) as server, Subject(server) as unanswering:
        for path in ("/predict", "/predict/label"):
            for data, status in (
                ([rows.sample], 200),
                ([[rows.highest, *rows.sample[1:]]], 422),
                ([rows.sample, [rows.highest, *rows.sample[1:]]], 422),
            ):
                answer = unanswering.post(path, json.dumps({"data": data}).encode())
                assert answer.status_code == status, f"{path}, {str(data)[:99]}: {answer.text}"
                assert status == 200 or "no finite answer" in answer.text
        reason = "422 the model has no finite answer"
        wait_until(lambda: refusals_in(server.log)[reason] == 4, "the log to count them")


def write_model_without_answers(metadata: dict[str, Any], directory: Path) -> None:
    """Writes a model whose probabilities are NaN unless a row begins like the sample."""
    sample, labels = metadata["sample"][0], metadata["labels"]
    constants = {
        "first": np.eye(len(sample), 1, dtype=np.float32),
        "expected": np.array(sample[0], np.float32),
        "uniform": np.full((1, len(labels)), 1 / len(labels), np.float32),
    }
    steps = [
        ("MatMul", ["X", "first"]),
        ("Sub", ["1", "expected"]),
        ("Abs", ["2"]),
        ("Neg", ["3"]),
        ("Sqrt", ["4"]),
        ("Add", ["5", "uniform"]),
    ]
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(operator, inputs, [str(index)])
            for index, (operator, inputs) in enumerate(steps, 1)
        ],
        "graph",
        [onnx.helper.make_tensor_value_info("X", kind, [None, len(sample)])],
        [onnx.helper.make_tensor_value_info("6", kind, [None, len(labels)])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", 17)
    content = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    changes = {
        "file": "model.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "input": {"name": "X"},
        "output": {"name": "6"},
    }
    (directory / "model.onnx").write_bytes(content)
    (directory / "metadata.json").write_text(json.dumps(metadata | changes), "utf-8")


def test_no_pattern_with_a_server_is_left_out() -> None:
    """An application that no Compose file starts with uvicorn would never be tested."""
    composes = {pattern: load(pattern) for pattern in patterns()}
    served = set()
    for pattern, name in servers():
        service = composes[pattern].services[name]
        directory = composes[pattern].directory_of(service)
        served.add((directory, package_of(pattern, service)))
    applications = {
        (directory, path.parent.name)
        for compose in composes.values()
        for directory in compose.directories()
        for path in directory.glob("*/*.py")
        if path.parent.name not in ("measure", "train")
        and re.search(r"^app = (FastAPI|Starlette)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    assert applications == served


# --- the control ----------------------------------------------------------------------------------


# What each check must find, among other things. What uvicorn alone passes has its control below.
CONTROL: dict[Check, list[str]] = {
    check_endpoints: [
        "5 rows: 1 entries",
        "/label is not declared",
        "/metadata: {'data_type': None",
    ],
    check_bad_bodies: [
        *("/predict, true: 200", "/predict, NaN: 5"),
        "/predict, only invalid values: 4000 reasons",
    ],
    # After a 500 the connection closes, which the next request, that of gzip, may run into.
    check_unsupported_bodies: ["/predict, UTF-16: 200", "/predict, the coding GZIP: 4"],
    check_bodies_at_the_limit: ["10 MB are not refused"],
    check_large_body: ["100 MB, Transfer-Encoding: chunked: 422"],
    check_large_head: ["a header without an end: 0"],
    check_slow_clients: ["beside 300 slow clients: {503}"],
    check_what_is_not_http: ["a request before what is not HTTP: [b'400']"],
    check_offers_of_a_protocol: ["h2c, Content-Length: 32: [b'422'"],
    check_log: ["the log to count Counter({", "lines for", "the log repeats a request"],
    check_methods_and_paths: ["GET /nothing: 200"],
    check_docs: [
        *("/docs refers to https://cdn", "/docs allows any host", "get /ready is in no group"),
        "/predict, example None: 422",
    ],
    check_generated_requests: ["Schema-violating request accepted"],
    check_requests_at_once: ["64 of 64 requests were served", "a 503 without Retry-After"],
    check_slow_body: ["no more: 0"],
    check_slow_head: ["'' and no more: it stays open", "'GET /hea' and no more: it stays open"],
    check_unread_responses: ["never reads keeps its connection"],
    check_clients_that_leave: ["too many bodies to be refused"],
    check_stop: ["exit code 3", "a kept-alive connection has lost a request"],
}
# These wait for what never comes.
NEVER = {
    *(check_large_head, check_slow_body, check_slow_head, check_unread_responses),
    *(check_clients_that_leave, check_offers_of_a_protocol, check_log),
}


@pytest.mark.parametrize("check", CONTROL, ids=lambda check: check.__name__)
def test_a_careless_server_does_not_keep_it(check: Check) -> None:
    patience_seconds = 1 if check in NEVER else 60
    limits = STRICT if check in (*STRICT_CHECKS, *STRICT_PROTOCOL_CHECKS) else {}
    with (
        run_uvicorn("tests.careless:app", cwd=ROOT, env=limits) as server,
        Subject(server, patience_seconds) as careless,
    ):
        found = "\n".join(check(careless))
    assert [finding for finding in CONTROL[check] if finding not in found] == []


def test_a_careless_server_of_ids_does_not_keep_it() -> None:
    with run_uvicorn("tests.careless:ids", cwd=ROOT) as server, Subject(server) as careless:
        found = "\n".join(check_bad_bodies(careless))
    for name in ("no texts", "a misspelt field", "the text '../x'", "the text 'a\\n'"):
        assert f"/predict, {name}: 200" in found, name


def test_a_careless_server_of_decisions_does_not_keep_it() -> None:
    with run_uvicorn("tests.careless:decisions", cwd=ROOT) as server, Subject(server) as careless:
        found = "\n".join(check_endpoints(careless))
    assert "5 rows: 1 entries" in found
    assert "post /predict does not declare {" in found
    # It has decisions and not labels.
    assert "/label" not in found


def test_a_careless_server_that_asks_services_does_not_keep_it() -> None:
    with run_uvicorn("tests.careless:services", cwd=ROOT) as server, Subject(server) as careless:
        found = "\n".join(check_endpoints(careless))
    assert "5 rows: 1 entries" in found
    assert "post /predict does not declare {" in found


def test_a_careless_server_of_partial_answers_does_not_keep_it() -> None:
    with run_uvicorn("tests.careless:partial", cwd=ROOT) as server, Subject(server) as careless:
        assert careless.is_partial
        found = "\n".join(check_endpoints(careless))
    assert "[1.0, 1.0, 1.0, 1.0]: None" in found
    assert "/predict/label: ['a', None" in found
    assert "post /predict/label does not declare {" in found
    # It has labels, but no model of its own.
    assert "/metadata has no" not in found
    assert "/metadata: " not in found


def test_every_check_has_a_control() -> None:
    controlled = {*CONTROL, check_pipelining}
    of_protocols = {*PROTOCOL_CHECKS, *STRICT_PROTOCOL_CHECKS}
    assert controlled == {check_endpoints, *CHECKS, *STRICT_CHECKS, *of_protocols, check_stop}


def test_a_server_that_answers_whatever_comes_does_not_keep_it() -> None:
    class Anything(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(10_000)
            self.request.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    with ThreadingTCPServer(("127.0.0.1", 0), Anything) as tcp:
        thread = threading.Thread(target=tcp.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{tcp.server_address[1]}"
            server: Any = type("Answering", (), {"url": url})
            with Subject(server) as subject:
                found = check_what_is_not_http(subject)
                pipelined = check_pipelining(subject)
        finally:
            tcp.shutdown()
            thread.join()
    assert len(found) == len(NO_HTTP)
    assert len(pipelined) == 1
