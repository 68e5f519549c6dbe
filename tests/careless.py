"""A server that breaks the contract in every way that the contract test looks for: its control.

It is what a first server looks like, with each mistake that has been made before.
"""

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAMPLE = [[5.1, 3.5, 1.4, 0.2]]


class PredictRequest(BaseModel):
    """Whatever becomes a number is a number, and a body without rows is the sample."""

    data: list[list[float]] = SAMPLE


class Prediction(BaseModel):
    """What every endpoint answers."""

    prediction: list[list[float]]


class NaiveLimit:
    """Counts requests up when they come and down when they are answered, if they are.

    A client that goes away is never counted down, and `/health` is refused like anything else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.requests_at_once = 0
        self.limit = int(os.environ.get("MAX_REQUESTS_AT_ONCE", "256"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.requests_at_once >= self.limit:
            await JSONResponse({"detail": "busy"}, 503)(scope, receive, send)
            return
        has_left = False

        async def watch() -> Message:
            nonlocal has_left
            message = await receive()
            has_left = has_left or message["type"] == "http.disconnect"
            return message

        self.requests_at_once += 1
        try:
            await self.app(scope, watch, send)
        finally:
            if not has_left:
                self.requests_at_once -= 1


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Ends at once when it is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(NaiveLimit)


@app.post("/predict", responses={408: {}, 413: {}, 503: {}})
@app.post("/predict/label", responses={408: {}, 413: {}, 503: {}})
async def predict(request: PredictRequest) -> Prediction:
    """Predicts the first row only, and fails on some."""
    if not all(-1e300 < value < 1e300 for row in request.data for value in row):
        json.dumps(request.data, allow_nan=False)
    return Prediction(prediction=[row[:3] for row in request.data[:1]])


@app.get("/metadata", responses={503: {}})
async def metadata() -> dict[str, Any]:
    """Says what a row is and nothing of the model."""
    return {"sample": SAMPLE}


@app.get("/ready")
async def ready() -> dict[str, str]:
    """The process answers."""
    return {"status": "ready"}


@app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
async def anything(path: str) -> dict[str, str]:
    """Knows every address."""
    return {"status": path}
