"""The servers under load: a replica that counts its predictions, and one that fails."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI, Response
from numpy.typing import NDArray

from ..app import main
from ..app.model import Model
from ..app.schema import FEATURES


class CountingModel(Model):
    """The shipped model, which also counts its calls."""

    calls = 0

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        self.calls += 1
        return super().predict(rows)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Replaces the shipped model with the counting one."""
    async with main.lifespan(app):
        app.state.model = CountingModel(main.settings.model_directory, FEATURES)
        yield


counting = main.app
counting.router.lifespan_context = lifespan


@counting.get("/calls")
async def calls() -> int:
    model: CountingModel = counting.state.model
    return model.calls


failing = FastAPI()
failing.state.status = 500
failing.state.seen = []


@failing.post("/predict")
async def fail_or_answer() -> Response:
    """Responds with 500 until it is repaired, and notes each request."""
    status: int = failing.state.status
    failing.state.seen.append((time.monotonic(), status))
    return Response('{"prediction":[]}', status, media_type="application/json")


@failing.post("/repair")
async def repair() -> None:
    failing.state.status = 200


@failing.get("/seen")
async def seen() -> list[tuple[float, int]]:
    """Returns the time of each request, in seconds, and the status that it got."""
    answered: list[tuple[float, int]] = failing.state.seen
    return answered


@failing.get("/ready")
async def ready() -> dict[str, str]:
    """Is ready, like a replica with a broken model."""
    return {"status": "ready"}
