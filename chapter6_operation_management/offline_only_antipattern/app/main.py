# Copied from chapter4_serving_patterns/web_single_pattern/app/main.py with One server holds interface->The model that wins on the test set loses on what users send, checks and model: the shortest way from a model to an endpoint->and only traffic can tell, web_single_pattern->offline_only_antipattern
"""The model that wins on the test set loses on what users send, and only traffic can tell."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

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


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port opens, so a caller who can connect gets predictions."""
    app.state.model = Model(settings.model_directory, FEATURES)
    yield


app = FastAPI(
    title="offline_only_antipattern",
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


@app.post("/predict", tags=["prediction"], responses=REFUSALS)
async def predict(request: Request, body: PredictRequest) -> Probabilities:
    """Predicts the probabilities of every row."""
    return Probabilities(prediction=model_of(request).predict(body.data).tolist())


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS)
async def predict_label(request: Request, body: PredictRequest) -> Labels:
    """Predicts the label of every row."""
    return Labels(prediction=model_of(request).predict_labels(body.data))


@app.get("/predict/test", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test(request: Request) -> Probabilities:
    """Predicts the sample row of the metadata."""
    model = model_of(request)
    return Probabilities(prediction=model.predict(model.sample).tolist())


@app.get("/predict/test/label", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test_label(request: Request) -> Labels:
    """Predicts the label of the sample row."""
    model = model_of(request)
    return Labels(prediction=model.predict_labels(model.sample))


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """Reports that the model predicts; the port is closed until it is loaded."""
    model_of(request).predict(model_of(request).sample)
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
