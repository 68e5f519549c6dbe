"""The shipped publisher, which counts what it sends, and publishes what it is told to."""

import os
from pathlib import Path

import numpy as np
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..publisher import main
from ..publisher.files import read_channel, read_releases

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

app = main.app
OWN = "/measure/"
sent = {"requests": 0, "bytes": 0}
# The control: what a server predicts with.
session = onnxruntime.InferenceSession(os.environ["SERVED_MODEL"])


class Counted:
    """Counts the requests and the bytes of their responses."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith((OWN, "/ready")):
            await self.app(scope, receive, send)
            return
        sent["requests"] += 1

        async def count(message: Message) -> None:
            sent["bytes"] += len(message.get("body", b""))
            await send(message)

        await self.app(scope, receive, count)


async def publish(request: Request) -> JSONResponse:
    """Publishes a release of another directory from now on."""
    models = Path(request.query_params["directory"])
    app.state.files |= read_releases(models)
    app.state.channel = read_channel(models, int(request.query_params["release"]))
    return JSONResponse(sent)


async def count(_: Request) -> JSONResponse:
    return JSONResponse(sent)


async def predict(request: Request) -> JSONResponse:
    """The control: the server predicts."""
    inputs = {"X": np.asarray((await request.json())["data"], np.float32)}
    return JSONResponse({"prediction": session.run(["probabilities"], inputs)[0].tolist()})


app.user_middleware.insert(0, Middleware(Counted))
# Before the route of the files, which has every path.
app.router.routes[:0] = [
    Route(f"{OWN}publish", publish, methods=["POST"]),
    Route(f"{OWN}sent", count),
    Route("/predict", predict, methods=["POST"]),
]
