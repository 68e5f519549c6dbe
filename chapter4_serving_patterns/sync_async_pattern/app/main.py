"""A light model answers at once, and a heavy one answers better a moment later."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from . import jobs
from .docs import add_docs
from .guard import count_refusal
from .model import Model, NoAnswerError
from .route import JsonRoute, refuse_invalid
from .schema import FEATURES, REFUSALS, UNAVAILABLE, UNKNOWN, Counts, Job, PredictRequest
from .settings import Settings
from .waiting import Waiting

settings = Settings()
logger = logging.getLogger("uvicorn.error")

# After a failure Redis is left alone for this long, so that only few first answers wait for it.
REST_SECONDS = 1.0

WaitSeconds = Annotated[float, Query(ge=0, le=30, allow_inf_nan=False)]


class Probabilities(BaseModel):
    """The light model's probabilities per row, and the job of the heavy model, if there is one."""

    prediction: list[list[float]]
    job_id: str | None


class Labels(BaseModel):
    """The light model's label of each row, and the job of the heavy model, if there is one."""

    prediction: list[str]
    job_id: str | None


class Models(BaseModel):
    """Which models answer; `ng` means not good."""

    light: Literal["ok", "ng"]
    heavy: Literal["ok", "ng"]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the light model before the port opens, and does not wait for Redis."""
    app.state.model = Model(settings.model_directory, FEATURES)
    # It waits for a free connection: there may be more callers than connections.
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=settings.max_requests_at_once,
        # A pooled connection may be stale, because Redis has restarted since.
        retry=Retry(NoBackoff(), 1),
    )
    app.state.redis = Redis.from_pool(pool)
    app.state.redis_rests_until = 0.0
    most = min(settings.max_waiting, settings.max_requests_at_once // 2)
    app.state.waiting = Waiting(app.state.redis, most, settings.redis_deadline_seconds)
    app.state.waiting.end_with_the_process()
    yield
    await app.state.redis.aclose()


app = FastAPI(
    title="sync_async_pattern",
    description=__doc__,
    version="0.1.0",
    lifespan=lifespan,
    docs_url=None,
    redoc_url=None,
    # Without this, FastAPI looks for a tracer on every request.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.router.route_class = JsonRoute
app.exception_handler(RequestValidationError)(refuse_invalid)
add_docs(app)


@app.exception_handler(NoAnswerError)
async def refuse_unanswerable(_: Request, error: Exception) -> JSONResponse:
    """Rejects rows for which the light model computes NaN or infinity."""
    count_refusal(422, "the model has no finite answer")
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(TimeoutError)
@app.exception_handler(RedisError)
async def refuse_without_redis(_: Request, error: Exception) -> JSONResponse:
    """Redis is down or too slow, and only Redis knows the jobs."""
    detail = "the queue is not available"
    count_refusal(503, f"{detail}: {type(error).__name__}: {error}".rstrip(": "))
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


def model_of(request: Request) -> Model:
    """Returns the light model that the lifespan loaded."""
    model: Model = request.app.state.model
    return model


def redis_of(request: Request) -> Redis:
    """Returns the pooled client that the lifespan has created."""
    redis: Redis = request.app.state.redis
    return redis


def within_deadline() -> asyncio.Timeout:
    """Limits the total time for Redis, including connecting and retrying."""
    return asyncio.timeout(settings.redis_deadline_seconds)


async def enqueue(request: Request, kind: str, rows: list[list[float]]) -> str | None:
    """Stores a job for the heavy model; None if there will be no second answer."""
    state, now = request.app.state, asyncio.get_running_loop().time
    if now() < state.redis_rests_until:
        return None
    try:
        async with asyncio.timeout(settings.enqueue_deadline_seconds):
            most = settings.max_pending_jobs
            return await jobs.enqueue(state.redis, kind, rows, None, most)
    except (jobs.QueueFullError, TimeoutError, RedisError) as error:
        if now() >= state.redis_rests_until:
            logger.warning("no second answers for %g s: %r", REST_SECONDS, error)
        state.redis_rests_until = now() + REST_SECONDS
        return None


async def answer(
    request: Request, kind: str, rows: list[list[float]], predict: Callable[..., Any]
) -> tuple[Any, str | None]:
    """Predicts with the light model while Redis stores the job for the heavy one."""
    job = asyncio.create_task(enqueue(request, kind, rows))
    # Sends the job first, so a light model that fails does not cost the second answer.
    await asyncio.sleep(0)
    prediction = predict(rows)
    return prediction, await job


async def heavy_answers(redis: Redis) -> bool:
    """Tells whether Redis takes jobs, and a worker has asked for some or kept its own lately."""
    try:
        async with within_deadline():
            await jobs.check_writable(redis)
            clients = await redis.client_list()
            holders = await redis.xinfo_consumers(jobs.STREAM, jobs.GROUP)
    except (TimeoutError, RedisError):
        return False
    # Before Redis 7.2 a consumer counts as idle while it asks in vain, but a client does not.
    idle_seconds = [float(each["idle"]) for each in clients if each["cmd"] == "xreadgroup"]
    idle_seconds += [each["idle"] / 1000 for each in holders]
    return min(idle_seconds, default=settings.lease_seconds) < settings.lease_seconds


async def probabilities(request: Request, rows: list[list[float]]) -> Probabilities:
    found, job_id = await answer(request, "probabilities", rows, model_of(request).predict)
    return Probabilities(prediction=found.tolist(), job_id=job_id)


async def labels(request: Request, rows: list[list[float]]) -> Labels:
    found, job_id = await answer(request, "label", rows, model_of(request).predict_labels)
    return Labels(prediction=found, job_id=job_id)


@app.post("/predict", tags=["prediction"], responses=REFUSALS)
async def predict(request: Request, body: PredictRequest) -> Probabilities:
    """Predicts the probabilities of every row, and has the heavy model predict them again."""
    return await probabilities(request, body.data)


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS)
async def predict_label(request: Request, body: PredictRequest) -> Labels:
    """Predicts the label of every row, and has the heavy model predict it again."""
    return await labels(request, body.data)


@app.get(
    "/job/{job_id}",
    tags=["jobs"],
    response_model_exclude_none=True,
    responses=UNKNOWN | UNAVAILABLE | {422: REFUSALS[422]},
)
async def job(request: Request, job_id: str, wait_seconds: WaitSeconds = 0) -> Job:
    """Returns the status of a job and its result, for which it waits up to `wait_seconds`."""
    if wait_seconds:
        await request.app.state.waiting.until_finished(job_id, wait_seconds)
    async with within_deadline():
        state = await jobs.look(redis_of(request), job_id, settings.lease_seconds)
    if state is None:
        raise HTTPException(404, "there is no job with this ID, or it has expired")
    return Job.model_validate_json(state)


@app.get("/queue", tags=["jobs"], responses=UNAVAILABLE)
async def queue(request: Request) -> Counts:
    """Counts all jobs since the queue was created, at one instant."""
    async with within_deadline():
        return Counts(**await jobs.count(redis_of(request)))


@app.get("/predict/test", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test(request: Request) -> Probabilities:
    """Predicts the sample row of the metadata."""
    return await probabilities(request, model_of(request).sample)


@app.get("/predict/test/label", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test_label(request: Request) -> Labels:
    """Predicts the label of the sample row."""
    return await labels(request, model_of(request).sample)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/health/all", tags=["health"], responses=UNAVAILABLE)
async def health_all(request: Request) -> Models:
    """Reports which models answer: the heavy one if Redis takes jobs and a worker takes them."""
    return Models(light="ok", heavy="ok" if await heavy_answers(redis_of(request)) else "ng")


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """Reports that the light model predicts; first answers need neither Redis nor workers."""
    model_of(request).predict(model_of(request).sample)
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the light model: version, origin, input, output and metrics."""
    return model_of(request).metadata


@app.get("/label", tags=["model"], responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return dict(enumerate(model_of(request).labels))


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
