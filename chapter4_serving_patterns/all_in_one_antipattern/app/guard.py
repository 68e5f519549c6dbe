# Copied from chapter4_serving_patterns/web_single_pattern/app/guard.py
"""Limits what a connection and a request can cost the process, before a handler runs.

uvicorn uses it instead of its own protocol if `UVICORN_HTTP` names it, as in the Dockerfile.
"""

import json
import logging
import socket
import struct
from asyncio import BaseTransport, Task, TimerHandle, get_running_loop
from collections import Counter
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .settings import Settings

MAX_HEAD_BYTES = 65_536
# A client that is refused while sending can read the response only if the connection is not reset,
# so what it sends within this time is discarded.
LINGER_SECONDS = 1.0
# How long a kept-alive connection may still send a request after SIGTERM.
DRAIN_SECONDS = 2.0
# The probes of Kubernetes: a busy server is still alive and ready.
EXEMPT = ("/health", "/ready")
# Of the refusals in one line of the log.
MAX_REASONS = 20

settings = Settings()
logger = logging.getLogger("uvicorn.error")
refusals: Counter[str] = Counter()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with limits on what a client may send, hold and leave unread.

    The application runs once the body is complete. A head is limited to 64 KiB (else 431), a body
    to `max_body_bytes` (413). Head and body must each arrive within `client_deadline_seconds` (408
    for a body; without a head the connection is closed), and a response must be read within the
    same time. Beyond `max_requests_at_once`, a request gets a 503 with `Retry-After`. After SIGTERM
    responses carry `Connection: close`, so clients reconnect elsewhere in time.
    """

    # Shared by all connections: the requests in progress, and the bytes of incomplete bodies.
    in_progress: ClassVar[set[RequestResponseCycle]] = set()
    arriving_bytes = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.chunk_bytes = 0
        # The head (by its scope) or the body (by its cycle) that the deadline is for.
        self.awaited: object = None
        self.deadline: TimerHandle | None = None
        self.head_bytes = 0
        self.body_bytes = 0
        # The application, while the body of its request arrives.
        self.held: ASGI3Application | None = None
        self.answered: RequestResponseCycle | None = None
        self.refused = False
        self.draining = False
        self.unread_deadline: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(cast("Any", transport))
        self.start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_deadline()
        self.pipeline.clear()
        if self.answered:
            self.answered.disconnected = True
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses the data; a head or body that is still incomplete gets a deadline."""
        if self.refused:
            return
        self.chunk_bytes = len(data)
        self._unset_keepalive_if_required()
        try:
            self.parse(data)
        except HttpParserError:
            self.refuse_invalid_http()
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.scope is not self.scope:
            self.wait_for_more()
        elif self.deadline:
            self.stop_deadline()

    def parse(self, data: bytes) -> None:
        """Parses the data, and ignores that a client offers to change the protocol.

        A parser skips the body of a request with such an offer. So another one gets the head
        without the offer, and then the rest.
        """
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except HttpParserUpgrade as offer:
                if not self._should_upgrade():
                    return
                rest = rest[offer.args[0] :]
                version = self.scope["http_version"].encode()
                first = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)
                fields = [b"%b: %b" % field for field in self.headers if field[0] != b"upgrade"]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(b"\r\n".join([first, *fields, b"", b""]))

    def _should_upgrade(self) -> bool:
        """Tells uvicorn to do nothing with a head that `parse` repeats."""
        # What follows a CONNECT is not HTTP, and the application has no route for it.
        return self.parser.get_method() != b"CONNECT"

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Runs the application when it is the request's turn and its body is complete."""
        if self.refused:
            return
        if self.draining:
            cycle.keep_alive = False
        if cycle.more_body:
            self.held = app
            if self.head_bytes + self.chunk_bytes > MAX_HEAD_BYTES:
                # They may include other requests, so this counts what belongs to the head.
                fields = [len(name) + len(value) for name, value in self.headers]
                self.refuse_large_head(len(self.url) + sum(fields))
        elif len(cycle.body) > settings.max_body_bytes:
            self.refuse_large_body(cycle)
        elif cycle.scope["path"] not in EXEMPT and not self.take_place(cycle):
            self.refuse(503, "too many requests at once", cycle)
        else:
            self.answered = cycle
            task = self.loop.create_task(cycle.run_asgi(app))
            self.tasks.add(task)
            task.add_done_callback(partial(self.end_task, cycle))

    def take_place(self, cycle: RequestResponseCycle) -> bool:
        if len(self.in_progress) >= settings.max_requests_at_once:
            return False
        self.in_progress.add(cycle)
        return True

    def end_task(self, cycle: RequestResponseCycle, task: Task[None]) -> None:
        """Frees the place of a request whose client disconnected before the response."""
        self.tasks.discard(task)
        self.in_progress.discard(cycle)

    def on_response_complete(self) -> None:
        self.in_progress.discard(cast("RequestResponseCycle", self.answered))
        super().on_response_complete()
        if self.pipeline:
            # uvicorn resumes reading after each response, so a pipeline could grow without limit.
            self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self.cycle.body += body
            if self.held and len(self.cycle.body) > settings.max_body_bytes:
                self.refuse_large_body(self.cycle)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self._should_upgrade():
            return
        self.cycle.more_body = False
        self.cycle.message_event.set()
        if self.held:
            app, self.held = self.held, None
            self._start_asgi_task(self.cycle, app)
        elif self.refused:
            self.transport.close()

    def wait_for_more(self) -> None:
        """Limits the bytes and the time of an incomplete head or body."""
        if self.refused:
            return
        in_body = self.cycle is not None and self.cycle.scope is self.scope
        awaited = self.cycle if in_body else self.scope
        if awaited is not self.awaited:
            self.awaited = awaited
            self.head_bytes = 0
            self.start_deadline()
            if self.held:
                self.accept_body()
        if self.held:
            self.count_arriving(len(self.cycle.body))
            if self.arriving_bytes > settings.max_requests_at_once * settings.max_body_bytes:
                self.refuse(503, "too many bodies at once", self.cycle)
        elif not in_body:
            self.head_bytes += self.chunk_bytes
            self.refuse_large_head(self.head_bytes)

    def accept_body(self) -> None:
        """Asks for the body, unless its announced length is too large."""
        length = dict(self.headers).get(b"content-length", b"0")
        if int(length) > settings.max_body_bytes:
            self.refuse_large_body(self.cycle)
        elif self.cycle.waiting_for_100_continue:
            self.cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def start_deadline(self) -> None:
        self.stop_deadline()
        seconds = settings.client_deadline_seconds
        self.deadline = self.loop.call_later(seconds, self.end_late_request)

    def stop_deadline(self) -> None:
        if self.deadline:
            self.deadline.cancel()
            self.deadline = None
        self.count_arriving(0)

    def end_late_request(self) -> None:
        """Refuses a late body, or closes a connection without a request."""
        if self.held:
            detail = f"the body was not complete after {settings.client_deadline_seconds} seconds"
            self.refuse(408, detail, self.cycle)
        elif self.is_answering():
            # The client is waiting for a response and has begun its next request.
            self.start_deadline()
        else:
            self.transport.close()

    def is_answering(self) -> bool:
        """Tells whether the application is working on a request of this connection."""
        return self.cycle is not None and not (self.held or self.cycle.response_complete)

    def count_arriving(self, body_bytes: int) -> None:
        """Updates the share of this connection in `arriving_bytes`."""
        BoundedProtocol.arriving_bytes += body_bytes - self.body_bytes
        self.body_bytes = body_bytes

    def refuse_invalid_http(self) -> None:
        """Refuses what cannot be parsed, or closes after a response that is still due."""
        if self.answered and self.is_answering():
            self.answered.keep_alive = False
            self.refused = True
        else:
            self.refuse(400, "the request is not valid HTTP", None)

    def refuse_large_head(self, head_bytes: int) -> None:
        """Refuses a head above the limit, but not before a response that is still due."""
        if head_bytes > MAX_HEAD_BYTES:
            if self.is_answering():
                self.flow.pause_reading()
            else:
                self.refuse(431, f"the head is larger than {MAX_HEAD_BYTES} bytes", None)

    def refuse_large_body(self, cycle: RequestResponseCycle) -> None:
        self.refuse(413, f"the body is larger than {settings.max_body_bytes} bytes", cycle)

    def refuse(self, status: int, detail: str, cycle: RequestResponseCycle | None) -> None:
        """Writes an error response; closes the connection unless the request is complete."""
        count_refusal(status, detail)
        content = json.dumps({"detail": detail}, separators=(",", ":")).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        keep_alive = cycle is not None and cycle.keep_alive and not cycle.more_body
        if not keep_alive:
            headers.append((b"connection", b"close"))
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([head, *lines, b"\r\n", content]))
        self.held = None
        if cycle:
            cycle.response_complete = True
        if keep_alive:
            # Not called directly: a long pipeline would recurse too deeply.
            self.loop.call_soon(self.on_response_complete)
        elif cycle and not cycle.more_body:
            self.transport.close()
        else:
            self.refused = True
            self.stop_deadline()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        """Gives the client a deadline for reading its responses."""
        super().pause_writing()
        seconds = settings.client_deadline_seconds
        self.unread_deadline = self.loop.call_later(seconds, self.reset)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.unread_deadline:
            self.unread_deadline.cancel()
            self.unread_deadline = None

    def reset(self) -> None:
        """Aborts the connection; the kernel would otherwise keep the unread data."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def shutdown(self) -> None:
        """Lets an idle connection send one more request; the response then closes it."""
        self.draining = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(DRAIN_SECONDS, super().shutdown)


def count_refusal(status: int, reason: str) -> None:
    """Counts a refusal for the log; the reason must not contain anything that the client has sent.

    Raises:
        RuntimeError: this is not the thread of the event loop.
    """
    loop = get_running_loop()
    if not refusals:
        loop.call_later(1, log_refusals)
    counted = f"{status} {reason}"
    is_known = counted in refusals or len(refusals) < MAX_REASONS
    refusals[counted if is_known else "other reasons"] += 1


def log_refusals() -> None:
    """Logs the refusals of the last second in one line."""
    counted = "; ".join(f"{count} x {reason}" for reason, count in refusals.items())
    logger.warning("refused: %s", counted)
    refusals.clear()
