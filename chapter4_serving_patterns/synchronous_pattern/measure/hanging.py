"""The shipped predictor, whose model counts its calls and can be made to hang."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from ..predictor import main
from ..predictor.model import Model
from ..predictor.schema import FEATURES

HANG_SECONDS = 60.0


class HangingModel(Model):
    """The shipped model; a call hangs while `goes_on` is not set."""

    goes_on = Event()
    # How long each call took.
    calls_ms: list[float] = []  # noqa: RUF012

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        began = time.perf_counter()
        self.calls_ms.append(0.0)
        self.goes_on.wait(HANG_SECONDS)
        probabilities = super().predict(rows)
        self.calls_ms[-1] = (time.perf_counter() - began) * 1000
        return probabilities


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Replaces the shipped model."""
    async with main.lifespan(app):
        app.state.model = HangingModel(main.settings.model_directory, FEATURES)
        app.state.model.goes_on.set()
        yield


app = main.app
app.router.lifespan_context = lifespan


@app.get("/calls")
async def calls() -> list[float]:
    """Returns how many milliseconds each call of the model took."""
    return HangingModel.calls_ms


@app.post("/hang")
async def hang() -> None:
    HangingModel.goes_on.clear()


@app.post("/go_on")
async def go_on() -> None:
    HangingModel.goes_on.set()
