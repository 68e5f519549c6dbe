"""Receives spans as a collector of OpenTelemetry does: OTLP over HTTP, on a free port."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tools.measure.server import wait_until

PATH = "/v1/traces"
CONTENT_TYPE = "application/x-protobuf"


@dataclass(frozen=True)
class Span:
    """A part of a request in one service; ids are hexadecimal, and a root has no parent."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def overlaps(self, other: "Span") -> bool:
        """Tells whether there is a time at which both are under way."""
        return max(self.start_ns, other.start_ns) < min(self.end_ns, other.end_ns)


def all_overlap(spans: Sequence[Span]) -> bool:
    """Tells whether each two of the spans overlap."""
    return all(one.overlaps(other) for one, other in combinations(spans, 2))


class Receiver:
    """The spans that have arrived so far, and the URL that `OTEL_EXPORTER_OTLP_ENDPOINT` names."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.lock = threading.Lock()
        self.received: list[Span] = []
        self.answers = threading.Event()
        self.answers.set()
        # The requests that have arrived, also those that hang.
        self.requests = 0

    @property
    def spans(self) -> list[Span]:
        with self.lock:
            return [*self.received]

    def traces(self) -> dict[str, list[Span]]:
        """Returns the spans of each trace, in order of their start."""
        found: dict[str, list[Span]] = {}
        for span in sorted(self.spans, key=lambda span: span.start_ns):
            found.setdefault(span.trace_id, []).append(span)
        return found

    def wait_for(self, count: int, deadline_seconds: float = 30) -> list[Span]:
        """Waits until so many spans have arrived, and returns all of them."""
        wait_until(lambda: len(self.spans) >= count, f"{count} spans", deadline_seconds)
        return self.spans

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Accepts requests and answers none of them before the end of the block."""
        self.answers.clear()
        try:
            yield
        finally:
            self.answers.set()

    def take(self, body: bytes) -> None:
        found = spans_in(body)
        with self.lock:
            self.received += found


def spans_in(body: bytes) -> list[Span]:
    """Parses the body of an export; raises a DecodeError if it is anything else."""
    return [
        Span(
            service=str(attributes_of(resource.resource.attributes).get("service.name", "")),
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            attributes=attributes_of(span.attributes),
        )
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def attributes_of(pairs: Any) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in pairs}


def value_of(value: Any) -> Any:
    """Returns a text, number or flag, and anything else as protobuf has it."""
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receives spans until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.requests += 1
            receiver.answers.wait()
            status = HTTPStatus.NOT_FOUND
            if self.path == PATH:
                try:
                    receiver.take(body)
                    status = HTTPStatus.OK
                except DecodeError:
                    status = HTTPStatus.BAD_REQUEST
            content = ExportTraceServiceResponse().SerializeToString()
            self.send_response(status)
            self.send_header("content-type", CONTENT_TYPE)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Writes no line for each request."""

    class Server(ThreadingHTTPServer):
        # A program that has given up leaves a connection that cannot be written to.
        def handle_error(self, *_: Any) -> None:
            """Writes nothing."""

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.answers.set()
            server.shutdown()
            thread.join()
