"""A queue decouples caller and model: the API responds at once, a worker predicts later."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from redis import RedisError
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from . import jobs
from .docs import add_docs
from .guard import count_refusal
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, UNKNOWN, Accepted, Counts, Job, PredictRequest
from .settings import Settings

settings = Settings()

IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Reads the metadata without loading the model: only the workers predict."""
    app.state.metadata = json.loads((settings.model_directory / "metadata.json").read_bytes())
    # It waits for a free connection: `/ready` needs one besides those of the requests at once.
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=settings.max_requests_at_once,
        # A pooled connection may be stale, because Redis has restarted since.
        retry=Retry(NoBackoff(), 1),
    )
    app.state.redis = Redis.from_pool(pool)
    yield
    await app.state.redis.aclose()


app = FastAPI(
    title="asynchronous_pattern",
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


def refuse(detail: str, reason: str) -> JSONResponse:
    """Asks the caller to try again later, and counts the reason for the log."""
    count_refusal(503, reason)
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


@app.exception_handler(TimeoutError)
@app.exception_handler(RedisError)
async def refuse_without_redis(_: Request, error: Exception) -> JSONResponse:
    """Redis is down, too slow or does not accept writes."""
    detail = "the queue is not available"
    return refuse(detail, f"{detail}: {type(error).__name__}: {error}".rstrip(": "))


@app.exception_handler(jobs.QueueFullError)
async def refuse_above_bound(_: Request, error: Exception) -> JSONResponse:
    """An unbounded queue would only hide the overload."""
    return refuse("the queue is full", "the queue is full")


def redis_of(request: Request) -> Redis:
    """Returns the pooled client that the lifespan has created."""
    redis: Redis = request.app.state.redis
    return redis


def metadata_of(request: Request) -> dict[str, Any]:
    """Returns the metadata that the lifespan has read."""
    metadata: dict[str, Any] = request.app.state.metadata
    return metadata


def within_deadline() -> asyncio.Timeout:
    """Limits the total time for Redis, including connecting and retrying."""
    return asyncio.timeout(settings.redis_deadline_seconds)


async def accept(
    request: Request,
    response: Response,
    kind: str,
    rows: list[list[float]],
    idempotency_key: str | None = None,
) -> Accepted:
    """Stores a job, and only then confirms it."""
    try:
        async with within_deadline():
            job_id = await jobs.enqueue(
                redis_of(request), kind, rows, idempotency_key, settings.max_pending_jobs
            )
    except jobs.KeyReusedError:
        detail = "the Idempotency-Key was used with a different request"
        count_refusal(422, detail)
        raise HTTPException(422, detail) from None
    response.headers["location"] = f"/job/{job_id}"
    return Accepted(job_id=job_id)


@app.post("/predict", tags=["prediction"], status_code=202, responses=REFUSALS)
async def predict(
    request: Request,
    response: Response,
    body: PredictRequest,
    idempotency_key: IdempotencyKey = None,
) -> Accepted:
    """Accepts a job that predicts the probabilities of every row."""
    return await accept(request, response, "probabilities", body.data, idempotency_key)


@app.post("/predict/label", tags=["prediction"], status_code=202, responses=REFUSALS)
async def predict_label(
    request: Request,
    response: Response,
    body: PredictRequest,
    idempotency_key: IdempotencyKey = None,
) -> Accepted:
    """Accepts a job that predicts the label of every row."""
    return await accept(request, response, "label", body.data, idempotency_key)


@app.get(
    "/job/{job_id}",
    tags=["jobs"],
    response_model_exclude_none=True,
    responses=UNKNOWN | UNAVAILABLE,
)
async def job(request: Request, job_id: str) -> Job:
    """Returns the status of a job, and its result if it has one."""
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


@app.get("/predict/test", tags=["prediction"], status_code=202, responses=UNAVAILABLE)
async def predict_test(request: Request, response: Response) -> Accepted:
    """Accepts a job that predicts the probabilities of the sample row."""
    return await accept(request, response, "probabilities", metadata_of(request)["sample"])


@app.get("/predict/test/label", tags=["prediction"], status_code=202, responses=UNAVAILABLE)
async def predict_test_label(request: Request, response: Response) -> Accepted:
    """Accepts a job that predicts the label of the sample row."""
    return await accept(request, response, "label", metadata_of(request)["sample"])


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """Redis accepts writes, so jobs can be accepted; the API does not need a running worker."""
    async with within_deadline():
        await jobs.check_writable(redis_of(request))
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the model: version, origin, input, output and metrics."""
    return metadata_of(request)


@app.get("/label", tags=["model"], responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return dict(enumerate(metadata_of(request)["labels"]))


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
