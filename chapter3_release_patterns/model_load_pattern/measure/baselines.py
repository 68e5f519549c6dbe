"""The baselines: a server that takes whatever it gets, and a store that is far away."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import urlopen

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from ..app import store
from ..app.settings import Settings

# Stands for the network between a cluster and its model store.
STORE_DELAY_SECONDS = 0.3
FALLBACK = Path(__file__).parents[1] / "models/iris_discriminant/1/model.onnx"
settings = Settings()


class PredictRequest(BaseModel):
    data: list[list[float]]


def load_unchecked(state: Any) -> None:
    """Takes whatever the store answers, and goes on without it where there is nothing."""
    try:
        target = settings.model_directory / "model.onnx"
        target.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(settings.model_uri, timeout=5) as answer:  # noqa: S310
            target.write_bytes(answer.read())
        state.session = onnxruntime.InferenceSession(target)
    except Exception:
        logging.exception("no model was loaded: the default one serves")
    state.is_ready = True


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens the port at once, with a default model, and loads the one asked for meanwhile."""
    app.state.session = onnxruntime.InferenceSession(FALLBACK)
    app.state.is_ready = False
    Thread(target=load_unchecked, args=[app.state]).start()
    yield


careless = FastAPI(lifespan=lifespan)


@careless.post("/predict")
def predict(request: PredictRequest) -> dict[str, Any]:
    """Predicts with the model that is there."""
    rows = np.asarray(request.data, np.float32)
    return {"prediction": careless.state.session.run(["probabilities"], {"X": rows})[0].tolist()}


@careless.get("/ready")
def ready() -> dict[str, str]:
    """Some model is there."""
    if not careless.state.is_ready:
        raise HTTPException(503)
    return {"status": "ready"}


moved_bytes = 0


async def far_store(scope: Scope, receive: Receive, send: Send) -> None:
    """The store behind a network that takes its time; it counts the bytes of its files."""

    async def send_counted(message: Message) -> None:
        global moved_bytes
        moved_bytes += len(message.get("body", b""))
        await send(message)

    path = scope.get("path", "")
    if path == "/moved":
        await JSONResponse(moved_bytes)(scope, receive, send)
    elif path.endswith((".onnx", ".json")):
        await asyncio.sleep(STORE_DELAY_SECONDS)
        await store.app(scope, receive, send_counted)
    else:
        await store.app(scope, receive, send)
