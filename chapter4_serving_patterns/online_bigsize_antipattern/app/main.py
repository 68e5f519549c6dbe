# Copied from chapter6_operation_management/circuit_breaker_pattern/app/main.py with A proxy refuses excess requests at once, and sends none to a replica that keeps failing->A model that is too slow for its deadline is a wrong model however good its score is, circuit_breaker_pattern->online_bigsize_antipattern
"""A model that is too slow for its deadline is a wrong model however good its score is."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from .docs import add_docs
from .guard import count_refusal
from .model import Model, NoAnswerError
from .route import JsonRoute, refuse_invalid
from .schema import FEATURES, REFUSALS, UNAVAILABLE, Labels, PredictRequest, Probabilities
from .settings import Settings

settings = Settings()
Prediction = TypeVar("Prediction")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port opens, so a caller who can connect gets predictions."""
    app.state.model = Model(settings.model_directory, FEATURES)
    # One thread, because more would share the core and make every response slower.
    with ThreadPoolExecutor(max_workers=1) as thread:
        app.state.thread = thread
        yield


app = FastAPI(
    title="online_bigsize_antipattern",
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


async def in_thread(
    request: Request, predict: Callable[[list[list[float]]], Prediction], rows: list[list[float]]
) -> Prediction:
    """Predicts outside the event loop, so that `/health` responds meanwhile."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(request.app.state.thread, predict, rows)


@app.post("/predict", tags=["prediction"], responses=REFUSALS)
async def predict(request: Request, body: PredictRequest) -> Probabilities:
    """Predicts the probabilities of every row."""
    probabilities = await in_thread(request, model_of(request).predict, body.data)
    return Probabilities(prediction=probabilities.tolist())


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS)
async def predict_label(request: Request, body: PredictRequest) -> Labels:
    """Predicts the label of every row."""
    labels = await in_thread(request, model_of(request).predict_labels, body.data)
    return Labels(prediction=labels)


@app.get("/predict/test", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test(request: Request) -> Probabilities:
    """Predicts the sample row of the metadata."""
    model = model_of(request)
    probabilities = await in_thread(request, model.predict, model.sample)
    return Probabilities(prediction=probabilities.tolist())


@app.get("/predict/test/label", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test_label(request: Request) -> Labels:
    """Predicts the label of the sample row."""
    model = model_of(request)
    return Labels(prediction=await in_thread(request, model.predict_labels, model.sample))


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """The model is loaded; a test prediction would have to queue, and a busy replica is ready."""
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
