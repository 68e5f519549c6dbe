"""A prediction that was made before is looked up instead of computed again."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel

from . import parallel
from .cache import Cache, Found, State
from .docs import add_docs
from .guard import count_refusal
from .keys import key_of
from .model import Model, NoAnswerError
from .route import JsonRoute, refuse_invalid
from .schema import FEATURES, REFUSALS, UNAVAILABLE, Labels, PredictRequest, Probabilities
from .settings import Settings

settings = Settings()
HEADER: dict[int | str, dict[str, Any]] = {
    200: {"headers": {"Cache-Status": {"schema": {"type": "string"}}}},
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port opens; Redis may be down."""
    model = app.state.model = Model(settings.model_directory, FEATURES)
    cache = app.state.cache = Cache(
        settings.redis_url,
        # A request sends one command at a time.
        max_connections=settings.max_requests_at_once,
        deadline_seconds=settings.redis_deadline_seconds,
        lease_seconds=settings.lease_seconds,
        ttl_seconds=settings.ttl_seconds,
        value_bytes=4 * len(model.labels),
    )
    # One thread, because more would share the core and make every response slower.
    with ThreadPoolExecutor(max_workers=1) as thread:
        app.state.thread = thread
        yield
    await cache.redis.aclose()


app = FastAPI(
    title="prediction_cache_pattern",
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
    """Rejects rows for which the model computes NaN or infinity."""
    count_refusal(422, "the model has no finite answer")
    return JSONResponse({"detail": str(error)}, 422)


def model_of(request: Request) -> Model:
    """Returns the model that the lifespan loaded."""
    model: Model = request.app.state.model
    return model


def cache_of(request: Request) -> Cache:
    """Returns the cache that the lifespan created."""
    cache: Cache = request.app.state.cache
    return cache


async def look_up(request: Request, rows: list[list[float]]) -> Found:
    """Looks up the probabilities of every row; the model computes those that are missing."""
    model, cache = model_of(request), cache_of(request)
    keys = [key_of(row, model.metadata["sha256"]) for row in rows]
    row_of = dict(zip(keys, rows, strict=True))

    async def compute(missing: list[bytes]) -> list[bytes]:
        loop = asyncio.get_running_loop()
        # Outside the event loop, so that hits and `/health` do not wait for the model.
        computed = await loop.run_in_executor(
            request.app.state.thread, model.predict, [row_of[key] for key in missing]
        )
        return [row.tobytes() for row in computed.astype("<f4", copy=False)]

    if settings.lookup == "parallel":
        return await parallel.get_many(cache, keys, compute)
    return await cache.get_many(keys, compute)


def probabilities_in(found: Found) -> NDArray[np.float32]:
    """Returns the probabilities [rows, classes] that the values hold."""
    return np.frombuffer(b"".join(found.values), "<f4").reshape(len(found.values), -1)


def answer(body: BaseModel, found: Found) -> Response:
    """Says in a header where the predictions come from."""
    headers = {"cache-status": found.cache_status}
    return Response(body.model_dump_json(), headers=headers, media_type="application/json")


@app.post(
    "/predict", tags=["prediction"], response_model=Probabilities, responses=HEADER | REFUSALS
)
async def predict(request: Request, body: PredictRequest) -> Response:
    """Predicts the probabilities of every row."""
    found = await look_up(request, body.data)
    return answer(Probabilities(prediction=probabilities_in(found).tolist()), found)


@app.post("/predict/label", tags=["prediction"], response_model=Labels, responses=HEADER | REFUSALS)
async def predict_label(request: Request, body: PredictRequest) -> Response:
    """Predicts the label of every row, which is in the same cached probabilities."""
    found = await look_up(request, body.data)
    labels = model_of(request).labels
    predicted = [labels[index] for index in probabilities_in(found).argmax(axis=1)]
    return answer(Labels(prediction=predicted), found)


@app.get("/cache", tags=["cache"], responses=UNAVAILABLE)
async def cache(request: Request) -> State:
    """Counts what this process has found and computed, and what Redis holds."""
    return await cache_of(request).state()


@app.get(
    "/predict/test",
    tags=["prediction"],
    response_model=Probabilities,
    responses=HEADER | UNAVAILABLE,
)
async def predict_test(request: Request) -> Response:
    """Predicts the sample row of the metadata."""
    return await predict(request, PredictRequest(data=model_of(request).sample))


@app.get(
    "/predict/test/label",
    tags=["prediction"],
    response_model=Labels,
    responses=HEADER | UNAVAILABLE,
)
async def predict_test_label(request: Request) -> Response:
    """Predicts the label of the sample row."""
    return await predict_label(request, PredictRequest(data=model_of(request).sample))


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """The model is loaded; without Redis, every prediction is computed."""
    model_of(request)
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the model: version, origin, input, output and metrics."""
    return model_of(request).metadata


@app.get("/label", tags=["model"], responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return dict(enumerate(model_of(request).labels))


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
