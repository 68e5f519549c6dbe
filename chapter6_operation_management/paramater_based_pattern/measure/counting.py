"""The shipped predictor, whose model counts its calls and may have more to compute."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from ..app import predictor
from ..app.model import Model
from ..app.schema import FEATURES


class CountingModel(Model):
    """The shipped model, which computes each row as often as `COPIES` says."""

    calls = 0
    copies = int(os.environ.get("COPIES", "1"))

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        CountingModel.calls += 1
        return super().predict(rows * self.copies)[: len(rows)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Replaces the shipped model."""
    async with predictor.lifespan(app):
        app.state.model = CountingModel(predictor.settings.model_directory, FEATURES)
        yield


app = predictor.app
app.router.lifespan_context = lifespan


@app.get("/calls")
async def calls() -> int:
    return CountingModel.calls
