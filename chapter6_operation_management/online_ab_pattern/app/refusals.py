# Copied from chapter5_operations/prediction_log_pattern/app/refusals.py
"""Gives every answer an ID, and writes a record of each refusal."""

import json
from http import HTTPStatus
from time import perf_counter
from typing import ClassVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from .guard import BoundedProtocol
from .log import Log, id_of

HEADER = b"x-job-id"
LONGEST_REASON = 200


class LogRefusals:
    """Adds `x-job-id` to each answer of an application, and logs those of 400 and more."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        job_id = scope["job_id"] = id_of(scope["headers"])
        scope["began"] = perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER, job_id.encode())]
                status = message["status"]
            elif status >= 400 and "is_counted" not in scope:
                scope["is_counted"] = True
                reason = reason_of(message.get("body", b""), status)
                LoggedProtocol.log.append("refusal", job_id, status=status, reason=reason)
            await send(message)

        await self.app(scope, receive, send_with_id)


class LoggedProtocol(BoundedProtocol):
    """Does the same for what the guard refuses before the application sees it."""

    log: ClassVar[Log]

    def refuse(self, status: int, detail: str, cycle: RequestResponseCycle | None) -> None:
        job_id = id_of(cycle.scope["headers"] if cycle else [])
        self.log.append("refusal", job_id, status=status, reason=detail)
        state, headers = self.server_state, self.server_state.default_headers
        state.default_headers = [*headers, (HEADER, job_id.encode())]
        super().refuse(status, detail, cycle)
        state.default_headers = headers


def reason_of(answer: bytes, status: int) -> str:
    """Returns the reason that the body of an error response gives."""
    try:
        detail = json.loads(answer)["detail"]
        reason = detail if isinstance(detail, str) else detail[0]["msg"]
        return str(reason)[:LONGEST_REASON]
    except (ValueError, KeyError, TypeError, IndexError):
        return HTTPStatus(status).phrase
