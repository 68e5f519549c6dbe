"""The baselines: a server that loads any file, and a store behind a slow network."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from ..app import store
from ..app.settings import Settings

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

FALLBACK = Path(__file__).parents[1] / "models/iris_discriminant/1/model.onnx"
settings = Settings()


class PredictRequest(BaseModel):
    data: list[list[float]]


def load_unchecked(state: Any) -> None:
    """Loads whatever the store returns, and keeps the default model if that fails."""
    try:
        target = settings.model_directory / "model.onnx"
        target.parent.mkdir(parents=True, exist_ok=True)
        source = settings.model_uri.removesuffix("metadata.json") + "model.onnx"
        with urlopen(source, timeout=5) as response:  # noqa: S310
            target.write_bytes(response.read())
        state.session = onnxruntime.InferenceSession(target)
    except Exception:
        logging.exception("no model was loaded: serving the default model")
    state.is_ready = True


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the port at once with a default model, and loads the requested one meanwhile."""
    app.state.session = onnxruntime.InferenceSession(FALLBACK)
    app.state.is_ready = False
    Thread(target=load_unchecked, args=[app.state]).start()
    yield


careless = FastAPI(lifespan=lifespan)


@careless.post("/predict")
def predict(request: PredictRequest) -> dict[str, Any]:
    """Predicts with the current model."""
    rows = np.asarray(request.data, np.float32)
    return {"prediction": careless.state.session.run(["probabilities"], {"X": rows})[0].tolist()}


@careless.get("/ready")
def ready() -> dict[str, str]:
    """Loading has ended, successfully or not."""
    if not careless.state.is_ready:
        raise HTTPException(503)
    return {"status": "ready"}


moved_bytes = 0


async def slow_store(scope: Scope, receive: Receive, send: Send) -> None:
    """The store behind a slow network; it counts the bytes of the files that it sends."""

    async def send_counted(message: Message) -> None:
        global moved_bytes
        moved_bytes += len(message.get("body", b""))
        await send(message)

    path = scope.get("path", "")
    if path == "/moved":
        await JSONResponse(moved_bytes)(scope, receive, send)
    elif path.endswith((".onnx", ".json")):
        await asyncio.sleep(float(os.environ["DELAY_SECONDS"]))
        await store.app(scope, receive, send_counted)
    else:
        await store.app(scope, receive, send)
