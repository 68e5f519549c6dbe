# Copied from chapter4_serving_patterns/web_single_pattern/app/guard.py
"""Bounds what one request can cost the process, before any handler sees it."""

import asyncio
from typing import cast

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .settings import Settings

# A client that is still sending when it is refused reads the refusal only if nobody resets the
# connection, so what it sends within this time is read and thrown away.
LINGER_SECONDS = 1.0
# What the cancellation of a request says when the deadline of its body is the reason.
TIMED_OUT = "the body is not complete at its deadline"


class BodyTooLargeError(Exception):
    """The body is larger than the limit."""


class Guard:
    """ASGI middleware that limits the requests at once, the bytes of a body and its seconds.

    It answers 503 with `Retry-After` above the limit of requests, 413 for a body that is too
    large, before it is read, and 408 for a body that is not complete at its deadline. `/health`
    is always let through: a server that is busy is alive. It is plain ASGI, because a
    BaseHTTPMiddleware adds a task and two streams to every request.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self.requests_at_once = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on with its whole body, or refuses it."""
        if scope["type"] != "http" or scope["path"] == "/health":
            await self.app(scope, receive, send)
            return
        if self.requests_at_once >= self.settings.max_requests_at_once:
            await refuse(scope, receive, send, 503, "too many requests at once")
            return
        self.requests_at_once += 1
        try:
            try:
                body = await self.read_body(scope, receive)
            except BodyTooLargeError:
                detail = f"the body is larger than {self.settings.max_body_bytes} bytes"
                await refuse(scope, receive, send, 413, detail)
                return
            except TimeoutError:
                detail = (
                    f"the body was not complete after {self.settings.body_deadline_seconds} seconds"
                )
                await refuse(scope, receive, send, 408, detail)
                return
            if body is not None:
                await self.app(scope, replay(body, receive), send)
        finally:
            self.requests_at_once -= 1

    async def read_body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Returns the body, or None for a client that has gone.

        Raises:
            BodyTooLargeError: the announced or the received length is above the limit.
            TimeoutError: the body is not complete at its deadline.
        """
        headers = dict(scope["headers"])
        length = headers.get(b"content-length")
        if length is None and b"transfer-encoding" not in headers:
            return b""
        if length is not None and int(length) > self.settings.max_body_bytes:
            raise BodyTooLargeError
        body = bytearray()
        # A timer of the loop costs a third of asyncio.timeout, and most bodies are here already.
        task = cast("asyncio.Task[None]", asyncio.current_task())
        deadline = self.settings.body_deadline_seconds
        timer = asyncio.get_running_loop().call_later(deadline, task.cancel, TIMED_OUT)
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body.extend(message.get("body", b""))
                if len(body) > self.settings.max_body_bytes:
                    raise BodyTooLargeError
                if not message.get("more_body", False):
                    return bytes(body)
        except asyncio.CancelledError as error:
            if error.args != (TIMED_OUT,):
                raise
            task.uncancel()
            raise TimeoutError from error
        finally:
            timer.cancel()


def replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the body in one message, then what comes from the client."""
    unread = True

    async def receive_body() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_body


async def refuse(scope: Scope, receive: Receive, send: Send, status: int, detail: str) -> None:
    """Answers at once, then lets the client finish sending for a moment, and closes."""
    headers = {"connection": "close"} | ({"retry-after": "1"} if status == 503 else {})
    response = JSONResponse({"detail": detail}, status, headers)
    await send({"type": "http.response.start", "status": status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})
