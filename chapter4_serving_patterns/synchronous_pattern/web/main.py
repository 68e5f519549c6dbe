"""The caller's next step waits for the prediction, and never longer than its deadline."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, RootModel

from . import sorting
from .docs import add_docs
from .guard import count_refusal
from .predictor import Predictor, PredictorError, TooManyPredictionsError, require_one_for_each
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, Labels, PredictRequest, Probabilities, Refusal
from .settings import Settings

NO_PREDICTION: dict[int | str, dict[str, Any]] = {
    502: {"model": Refusal, "description": "The response of predictor is invalid"},
    504: {"model": Refusal, "description": "No prediction within the deadline"},
}

settings = Settings()


class Sorted(BaseModel):
    """The lane of each letter; if `fallback`, there is no prediction."""

    prediction: list[str] | None
    lane: list[str]
    fallback: bool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keeps one pool of connections to predictor as long as the process lives."""
    predictor = Predictor(
        settings.predictor_url, settings.deadline_seconds, settings.max_predictions_at_once
    )
    app.state.predictor = predictor
    yield
    await predictor.close()


app = FastAPI(
    title="synchronous_pattern",
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


@app.exception_handler(PredictorError)
async def say_why(_: Request, error: PredictorError) -> JSONResponse:
    """Responds with the status and reason of a failed call."""
    count_refusal(error.status, error.reason)
    headers = {"retry-after": "1"} if error.status == 503 else {}
    return JSONResponse({"detail": error.args[0]}, error.status, headers)


@app.exception_handler(TooManyPredictionsError)
async def refuse_excess(_: Request, error: Exception) -> JSONResponse:
    """Asks the caller to try again later: one more would make all others late."""
    count_refusal(503, "too many predictions at once")
    return JSONResponse({"detail": str(error)}, 503, {"retry-after": "1"})


def predictor_of(request: Request) -> Predictor:
    """Returns the pool that the lifespan opened."""
    predictor: Predictor = request.app.state.predictor
    return predictor


@app.post("/predict", tags=["prediction"], responses=REFUSALS | NO_PREDICTION)
async def predict(request: Request, body: PredictRequest) -> Probabilities:
    """Predicts the probabilities of every row."""
    content = await request.body()
    answer = await predictor_of(request).ask("/predict", Probabilities, content)
    require_one_for_each(answer.prediction, len(body.data))
    return answer


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS | NO_PREDICTION)
async def predict_label(request: Request, body: PredictRequest) -> Labels:
    """Predicts the label of every row."""
    labels = await predictor_of(request).predict(await request.body(), len(body.data))
    return Labels(prediction=labels)


@app.post("/sort", tags=["prediction"], responses=REFUSALS)
async def sort(request: Request, body: PredictRequest) -> Sorted:
    """Chooses the lane of every letter: by its predicted figure, or by hand without one."""
    letters = len(body.data)
    try:
        labels = await predictor_of(request).predict(await request.body(), letters)
    except PredictorError as error:
        count_refusal(error.status, f"{error.reason}, so by hand")
        return Sorted(prediction=None, lane=[sorting.BY_HAND] * letters, fallback=True)
    lanes = [sorting.lane_of(label) for label in labels]
    return Sorted(prediction=labels, lane=lanes, fallback=False)


@app.get("/predict/test", tags=["prediction"], responses=UNAVAILABLE | NO_PREDICTION)
async def predict_test(request: Request) -> Probabilities:
    """Predicts the probabilities of the sample row."""
    return await predictor_of(request).ask("/predict/test", Probabilities)


@app.get("/predict/test/label", tags=["prediction"], responses=UNAVAILABLE | NO_PREDICTION)
async def predict_test_label(request: Request) -> Labels:
    """Predicts the label of the sample row."""
    return await predictor_of(request).ask("/predict/test/label", Labels)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready() -> dict[str, str]:
    """Does not ask predictor: without it, callers still get their next step."""
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE | NO_PREDICTION)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the model that predictor serves."""
    return (await predictor_of(request).ask("/metadata", RootModel[dict[str, Any]])).root


@app.get("/label", tags=["model"], responses=UNAVAILABLE | NO_PREDICTION)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return (await predictor_of(request).ask("/label", RootModel[dict[int, str]])).root


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
