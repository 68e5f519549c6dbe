"""Writes a record of every request for a prediction before its answer leaves."""

import re
import socket
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from .guard import BoundedProtocol
from .log import Log, id_of, version_of

PATHS = ("/predict", "/predict/label")
# Who asks, as callers name themselves; where that matters, a proxy that knows them sets it.
CALLER = b"x-caller"
NAME = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Clock(Protocol):
    """Tells the time as the module `time` does, or a simulated one."""

    def time(self) -> float:
        """Returns the seconds since 1970."""

    def perf_counter(self) -> float:
        """Returns seconds, to measure how long something takes."""


class Recorder:
    """Gives each answer an `x-job-id`, under which there is a record of it."""

    # The lifespan opens it.
    log: ClassVar[Log]

    def __init__(self, app: ASGIApp, clock: Clock = time) -> None:
        self.app = app
        self.clock = clock
        self.replica = socket.gethostname()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        at, began = self.clock.time(), self.clock.perf_counter()
        job_id = id_of(scope["headers"])

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-job-id", job_id.encode())]
                self.log.append(
                    "request",
                    job_id,
                    **asked(scope, at),
                    status=message["status"],
                    ms=round((self.clock.perf_counter() - began) * 1000, 3),
                    model=version_of(scope["app"].state.model.metadata),
                    replica=self.replica,
                    # A request that is refused has no rows, and one that fails has no labels.
                    rows=scope.get("rows"),
                    labels=scope.get("labels"),
                )
            await send(message)

        await self.app(scope, receive, send_recorded)


class RecordedProtocol(BoundedProtocol):
    """Records what the guard refuses before the application sees it."""

    def refuse(self, status: int, detail: str, cycle: RequestResponseCycle | None) -> None:
        if cycle and cycle.scope["path"] in PATHS:
            job_id = id_of(cycle.scope["headers"])
            what = asked(dict(cycle.scope), time.time())
            Recorder.log.append("request", job_id, **what, status=status)
        super().refuse(status, detail, cycle)


def asked(scope: Mapping[str, Any], at: float) -> dict[str, Any]:
    """Returns when which caller asked for what."""
    return {
        "at": datetime.fromtimestamp(at, UTC),
        "caller": caller_of(scope["headers"]),
        "path": scope["path"],
    }


def caller_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Returns the name of the caller; None without one, or if it is no name."""
    for name, value in headers:
        if name == CALLER and NAME.fullmatch(value):
            return value.decode()
    return None
