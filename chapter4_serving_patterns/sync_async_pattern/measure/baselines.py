"""The baseline: a server whose caller waits for the heavy model."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from redis.asyncio import Redis

from ..app import jobs
from ..app.settings import Settings
from ..app.waiting import Waiting

# Longer than any caller waits.
FOREVER_SECONDS = 3_600
settings = Settings()


class PredictRequest(BaseModel):
    data: list[list[float]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Connects to Redis."""
    async with Redis.from_url(settings.redis_url) as redis:
        app.state.redis = redis
        app.state.waiting = Waiting(redis, settings.max_waiting, settings.redis_deadline_seconds)
        yield


synchronous = FastAPI(lifespan=lifespan)


@synchronous.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@synchronous.post("/predict/label")
async def predict_label(request: PredictRequest) -> Any:
    """Has the heavy model predict, and lets the caller wait for it."""
    state = synchronous.state
    job_id = await jobs.enqueue(state.redis, "label", request.data, None, settings.max_pending_jobs)
    await state.waiting.until_finished(job_id, FOREVER_SECONDS)
    return json.loads(await jobs.look(state.redis, job_id, settings.lease_seconds) or "{}")
