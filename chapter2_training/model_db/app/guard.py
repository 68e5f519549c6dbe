# Copied from chapter4_serving_patterns/web_single_pattern/app/guard.py
"""Bounds what a connection and a request can cost the process, before any handler sees them.

uvicorn uses it in place of its own protocol when `UVICORN_HTTP` names it, as the Dockerfile does.
"""

import json
import logging
import socket
import struct
from asyncio import BaseTransport, Task, TimerHandle
from collections import Counter
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .settings import Settings

MAX_HEAD_BYTES = 65_536
# A client that is refused while it is sending can only read the response if the connection is not
# reset, so what it still sends within this time is discarded.
LINGER_SECONDS = 1.0
# How long a kept-alive connection may still send a request after SIGTERM.
DRAIN_SECONDS = 2.0
# An orchestrator asks these, and a busy server is neither dead nor useless.
EXEMPT = ("/health", "/ready")

settings = Settings()
logger = logging.getLogger("uvicorn.error")
refusals: Counter[str] = Counter()


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol for HTTP/1.1 with bounds for what a client sends, holds and leaves unread.

    An application is called when the body is whole. A head may have 64 KiB (else 431), a body
    `max_body_bytes` (413). Each has to arrive within `client_deadline_seconds` (408 for a body; a
    connection without a whole head is closed), and a response has to be read within it. Above
    `max_requests_at_once`, a request gets 503 with `Retry-After`. After SIGTERM, responses carry
    `Connection: close`, so that clients leave before the connection does.
    """

    # Of all connections: requests under way, and the bytes of bodies that are not whole yet.
    under_way: ClassVar[set[RequestResponseCycle]] = set()
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
        """Parses what the client has sent; what is not whole after it has a deadline."""
        if self.refused:
            return
        self.chunk_bytes = len(data)
        super().data_received(data)
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.scope is not self.scope:
            self.wait_for_more()
        elif self.deadline:
            self.stop_deadline()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Calls the application for a request whose turn it is, once its body is whole."""
        if self.refused:
            return
        if self.draining:
            cycle.keep_alive = False
        if cycle.more_body:
            self.held = app
            if self.chunk_bytes > MAX_HEAD_BYTES:
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
        if len(self.under_way) >= settings.max_requests_at_once:
            return False
        self.under_way.add(cycle)
        return True

    def end_task(self, cycle: RequestResponseCycle, task: Task[None]) -> None:
        """Frees the place of a request whose client has gone before its response was sent."""
        self.tasks.discard(task)
        self.under_way.discard(cycle)

    def on_response_complete(self) -> None:
        self.under_way.discard(cast("RequestResponseCycle", self.answered))
        super().on_response_complete()
        if self.pipeline:
            # uvicorn reads on after each response, and what is pipelined would have no bound.
            self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            self.cycle.body += body
            if self.held and len(self.cycle.body) > settings.max_body_bytes:
                self.refuse_large_body(self.cycle)

    def on_message_complete(self) -> None:
        self.cycle.more_body = False
        self.cycle.message_event.set()
        if self.held:
            app, self.held = self.held, None
            self._start_asgi_task(self.cycle, app)
        elif self.refused:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        """No other protocol is spoken here, so an offer to upgrade is ignored."""
        return False

    def wait_for_more(self) -> None:
        """Bounds the bytes and the seconds of a head or a body that is not whole yet."""
        if self.refused:
            return
        in_body = self.cycle is not None and self.cycle.scope is self.scope
        awaited = self.cycle if in_body else self.scope
        if awaited is not self.awaited:
            self.awaited = awaited
            self.head_bytes = 0
            self.start_deadline()
            if self.held:
                self.let_body_come()
        if self.held:
            self.count_arriving(len(self.cycle.body))
            if self.arriving_bytes > settings.max_requests_at_once * settings.max_body_bytes:
                self.refuse(503, "too many bodies at once", self.cycle)
        elif not in_body:
            self.head_bytes += self.chunk_bytes
            self.refuse_large_head(self.head_bytes)

    def let_body_come(self) -> None:
        """Asks for the body, unless it is announced to be too large."""
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
        """Refuses a body, or closes a connection, that is late."""
        if self.held:
            seconds = settings.client_deadline_seconds
            detail = f"the body was not complete after {seconds} seconds"
            self.refuse(408, detail, self.cycle)
        elif self.is_answering():
            # It is the next request of a client that waits for the response to this one.
            self.start_deadline()
        else:
            self.transport.close()

    def is_answering(self) -> bool:
        """Tells whether an application is at work for this connection."""
        return self.cycle is not None and not (self.held or self.cycle.response_complete)

    def count_arriving(self, body_bytes: int) -> None:
        """Updates this connection's part of the bodies that are arriving."""
        BoundedProtocol.arriving_bytes += body_bytes - self.body_bytes
        self.body_bytes = body_bytes

    def refuse_large_head(self, head_bytes: int) -> None:
        """Refuses a head above the limit; where an earlier response is due, reads on after it."""
        if head_bytes > MAX_HEAD_BYTES:
            if self.is_answering():
                self.flow.pause_reading()
            else:
                self.refuse(431, f"the head is larger than {MAX_HEAD_BYTES} bytes", None)

    def refuse_large_body(self, cycle: RequestResponseCycle) -> None:
        self.refuse(413, f"the body is larger than {settings.max_body_bytes} bytes", cycle)

    def refuse(self, status: int, detail: str, cycle: RequestResponseCycle | None) -> None:
        """Writes a refusal of a request, or of a head; closes the connection if it is not whole."""
        if not refusals:
            self.loop.call_later(1, log_refusals)
        refusals[f"{status} {detail}"] += 1
        content = json.dumps({"detail": detail}, separators=(",", ":")).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        if status == 503:
            headers.append((b"retry-after", b"1"))
        is_whole = bool(cycle and not cycle.more_body)
        keep_alive = bool(is_whole and cycle and cycle.keep_alive)
        if not keep_alive:
            headers.append((b"connection", b"close"))
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([head, *lines, b"\r\n", content]))
        self.held = None
        if cycle:
            cycle.response_complete = True
        if keep_alive:
            # Not called directly, because many pipelined requests would call each other.
            self.loop.call_soon(self.on_response_complete)
        elif is_whole:
            self.transport.close()
        else:
            self.refused = True
            self.stop_deadline()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def pause_writing(self) -> None:
        """Gives a client that does not read its responses a deadline."""
        super().pause_writing()
        seconds = settings.client_deadline_seconds
        self.unread_deadline = self.loop.call_later(seconds, self.reset)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.unread_deadline:
            self.unread_deadline.cancel()
            self.unread_deadline = None

    def reset(self) -> None:
        """Ends the connection; the system would otherwise keep what is unread."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def shutdown(self) -> None:
        """Lets a kept-alive connection send one more request, whose response closes it."""
        self.draining = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(DRAIN_SECONDS, super().shutdown)


def log_refusals() -> None:
    """Logs the refusals of the last second in one line."""
    counted = "; ".join(f"{count} x {reason}" for reason, count in refusals.items())
    logger.warning("refused: %s", counted)
    refusals.clear()
