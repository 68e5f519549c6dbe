# Copied from chapter4_serving_patterns/horizontal_microservice_pattern/measure/slow.py
"""The shipped predictor, which counts its calls and may wait or compute before it answers.

A wait is a simulation: it stands for the feature store that a service asks first.
"""

import asyncio
import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ..predictor.main import app

# How many more rows the model predicts for each request.
MORE_ROWS = int(os.environ.get("MORE_ROWS", "0"))

wait_ms = float(os.environ.get("WAIT_MS", "0"))
calls = 0


class Slow:
    """Waits and computes within the span of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        global calls
        if scope["type"] == "http" and scope["path"] == "/predict":
            calls += 1
            await asyncio.sleep(wait_ms / 1000)
            if MORE_ROWS:
                model = app.state.model
                model.predict(model.sample * MORE_ROWS)
        await self.app(scope, receive, send)


# The innermost one.
app.user_middleware.append(Middleware(Slow))


@app.post("/wait/{milliseconds}")
async def wait(milliseconds: float) -> None:
    global wait_ms
    wait_ms = milliseconds


@app.get("/calls")
async def count_calls() -> int:
    return calls
