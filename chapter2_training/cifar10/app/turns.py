"""Bounds memory by parsing and predicting only a few request bodies at a time."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from .settings import Settings


class Turns:
    """ASGI middleware that makes predict requests wait for their turn.

    It is middleware because FastAPI parses the body before it calls the handler, and the parsed
    numbers take many times the size of the body.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.turns = asyncio.Semaphore(settings.max_predictions_at_once)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; a POST waits for its turn first."""
        if scope["type"] == "http" and scope["method"] == "POST":
            async with self.turns:
                await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)
