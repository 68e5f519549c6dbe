"""The controls: one process for both, no checks of pictures, JSON, and two preds in turn."""

import io
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from PIL import Image

from ..pred.model import Model
from ..prep import main
from ..prep.images import tensor_from
from ..prep.pair import load
from ..prep.predictor import Answer, Predictor

# A server that trusts its callers.
plain = FastAPI()


@plain.get("/ready")
async def ready() -> None:
    """It has nothing to wait for."""


@plain.post("/predict")
async def decode(request: Request) -> float:
    image = Image.open(io.BytesIO(await request.body())).resize((224, 224))
    return float(np.asarray(image.convert("RGB"), np.float32).mean())


def one_process(directory: Path, pictures: Sequence[bytes], at_once: int) -> NDArray[np.float32]:
    """Preprocesses and predicts all pictures in this process."""
    preprocessing, model = load(directory).preprocessing, Model(directory)
    tensors = (tensor_from(picture, preprocessing) for picture in pictures)
    chunks = [
        model.predict(np.stack([next(tensors) for _ in pictures[start : start + at_once]]))
        for start in range(0, len(pictures), at_once)
    ]
    return np.concatenate(chunks)


class JsonPredictor(Predictor):
    """Sends the numbers of the tensor as JSON."""

    async def predict(self, tensors: NDArray[np.float32]) -> NDArray[np.float32]:
        numbers = {"shape": tensors.shape, "data": tensors.ravel().tolist()}
        body = json.dumps({"inputs": [{"name": "pictures", "datatype": "FP32"} | numbers]})
        _, _, content = await self.ask(f"{self.path}/infer", body.encode())
        return np.array(json.loads(content)["outputs"][0]["data"], np.float32)


class PredictorInTurn(Predictor):
    """Asks several preds in turn."""

    urls = cycle(os.environ.get("PRED_URLS", "").split())

    async def fetch(self, path: str, body: bytes | None, headers: dict[str, str] | None) -> Answer:
        self.url = next(self.urls)
        return await super().fetch(path, body, headers)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Replaces the class of the shipped client, which has no state of its own."""
    async with main.lifespan(app):
        app.state.predictor.__class__ = PredictorInTurn
        yield


in_turn = main.app
in_turn.router.lifespan_context = lifespan
