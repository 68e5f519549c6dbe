"""Bounds the memory of predictions: few bodies at once are parsed and predicted."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from .settings import Settings


class Turns:
    """ASGI middleware in which requests that predict wait for their turn.

    It stands before the routes because FastAPI parses a body before it calls the handler, and the
    numbers of a body take many times its bytes.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.turns = asyncio.Semaphore(settings.max_predictions_at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, a POST when it is its turn."""
        if scope["type"] == "http" and scope["method"] == "POST":
            async with self.turns:
                await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)
