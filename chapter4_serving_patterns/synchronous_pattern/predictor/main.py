"""Predicts in one thread, unless the deadline of the caller has passed by the time it is free."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel

from .docs import add_docs
from .guard import count_refusal
from .model import Model, NoAnswerError
from .route import JsonRoute, refuse_invalid
from .schema import FEATURES, REFUSALS, UNAVAILABLE, Labels, PredictRequest, Probabilities, Refusal
from .settings import Settings

# The milliseconds that the caller still waits. Relative, because the clocks of two machines differ.
DEADLINE = "x-deadline-ms"
LATE: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": f"The request is invalid, or its {DEADLINE}"},
    504: {"model": Refusal, "description": f"The caller's {DEADLINE} have passed"},
}

settings = Settings()
Rows = list[list[float]]
Prediction = TypeVar("Prediction")


class LateError(Exception):
    """The caller no longer waits for this prediction."""


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port opens, so a caller who can connect gets predictions."""
    app.state.model = Model(settings.model_directory, FEATURES)
    # One thread, because more would share the core and make every response slower.
    with ThreadPoolExecutor(max_workers=1) as thread:
        app.state.thread = thread
        yield


app = FastAPI(
    title="synchronous_pattern: predictor",
    description=f"{__doc__} The header `{DEADLINE}` says how many milliseconds the caller waits.",
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


@app.exception_handler(LateError)
async def refuse_late(_: Request, error: Exception) -> JSONResponse:
    """Computes nothing for a caller that no longer waits."""
    count_refusal(504, str(error))
    return JSONResponse({"detail": str(error)}, 504)


def model_of(request: Request) -> Model:
    """Returns the model that the lifespan loaded."""
    model: Model = request.app.state.model
    return model


def deadline_of(request: Request) -> float:
    """Returns the time until which the caller waits."""
    text = request.headers.get(DEADLINE)
    if text is None:
        return float("inf")
    if not re.fullmatch(r"[0-9]{1,9}", text):
        detail = f"{DEADLINE} is not a whole number of milliseconds"
        count_refusal(422, detail)
        raise HTTPException(422, detail)
    return time.monotonic() + int(text) / 1000


def in_time(
    deadline: float, predict: Callable[[Rows], Prediction], rows: Rows
) -> tuple[Prediction, float]:
    """Predicts and returns how many seconds that took, unless the deadline has passed."""
    began = time.monotonic()
    if began >= deadline:
        raise LateError("the deadline of the caller passed before the model was free")
    return predict(rows), time.monotonic() - began


async def in_thread(
    request: Request, predict: Callable[[Rows], Prediction], rows: Rows
) -> tuple[Prediction, float]:
    """Predicts outside the event loop, so that `/health` responds meanwhile."""
    loop = asyncio.get_running_loop()
    deadline = deadline_of(request)
    return await loop.run_in_executor(request.app.state.thread, in_time, deadline, predict, rows)


def timed(answer: BaseModel, seconds: float) -> Response:
    """Returns a response that also says how long the model took."""
    headers = {"server-timing": f"model;dur={seconds * 1000:.3f}"}
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)


async def probabilities_of(request: Request, rows: Rows) -> Response:
    probabilities, seconds = await in_thread(request, model_of(request).predict, rows)
    return timed(Probabilities(prediction=probabilities.tolist()), seconds)


async def labels_of(request: Request, rows: Rows) -> Response:
    labels, seconds = await in_thread(request, model_of(request).predict_labels, rows)
    return timed(Labels(prediction=labels), seconds)


@app.post("/predict", tags=["prediction"], responses=REFUSALS | LATE, response_model=Probabilities)
async def predict(request: Request, body: PredictRequest) -> Response:
    """Predicts the probabilities of every row."""
    return await probabilities_of(request, body.data)


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS | LATE, response_model=Labels)
async def predict_label(request: Request, body: PredictRequest) -> Response:
    """Predicts the label of every row."""
    return await labels_of(request, body.data)


@app.get(
    "/predict/test", tags=["prediction"], responses=UNAVAILABLE | LATE, response_model=Probabilities
)
async def predict_test(request: Request) -> Response:
    """Predicts the sample row of the metadata."""
    return await probabilities_of(request, model_of(request).sample)


@app.get(
    "/predict/test/label", tags=["prediction"], responses=UNAVAILABLE | LATE, response_model=Labels
)
async def predict_test_label(request: Request) -> Response:
    """Predicts the label of the sample row."""
    return await labels_of(request, model_of(request).sample)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """The model is loaded; a test prediction would have to queue, and a busy server is ready."""
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
