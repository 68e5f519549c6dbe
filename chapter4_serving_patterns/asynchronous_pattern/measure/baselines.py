"""The baselines: a worker that a job can kill, a worker that pops, and a server without a queue."""

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel
from redis import Redis

from ..app import worker
from ..app.model import Model
from ..app.schema import FEATURES
from ..app.settings import Settings

# Real pixels are whole numbers. A row that begins with this one kills the process that predicts it.
POISON = 13.25
POPPED_LIST = "popped"
settings = Settings()


class MortalModel(Model):
    """A model with a bug that ends the process like a segmentation fault."""

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        if any(row[0] == POISON for row in rows):
            os._exit(1)
        return super().predict(rows)


def pop() -> None:
    """Works as most queue tutorials do: takes jobs off a list first, then processes them."""
    redis: Any = Redis.from_url(settings.redis_url)
    model = MortalModel(settings.model_directory, FEATURES)
    if settings.alive_file:
        settings.alive_file.touch()
    while True:
        first = redis.blpop(POPPED_LIST)[1]
        batch = [first, *(redis.lpop(POPPED_LIST, settings.batch_jobs - 1) or [])]
        popped = [json.loads(text) for text in batch]
        probabilities = model.predict([job["row"] for job in popped])
        answers = zip(popped, probabilities.tolist(), strict=True)
        redis.mset({f"popped:{job['id']}": json.dumps(answer) for job, answer in answers})


class PredictRequest(BaseModel):
    data: list[list[float]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model."""
    app.state.model = Model(settings.model_directory, FEATURES)
    yield


synchronous = FastAPI(lifespan=lifespan)


@synchronous.get("/ready")
def ready() -> dict[str, str]:
    return {"status": "ready"}


@synchronous.post("/predict")
def predict(request: PredictRequest) -> dict[str, list[list[float]]]:
    """Lets the caller wait for the model."""
    return {"prediction": synchronous.state.model.predict(request.data).tolist()}


if __name__ == "__main__":
    if sys.argv[1:] == ["pop"]:
        pop()
    worker.run(settings, MortalModel(settings.model_directory, FEATURES))
