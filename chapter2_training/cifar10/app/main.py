"""Four steps train, build and score a server of images, and only what has changed runs again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError

from .answer import Labels, Probabilities, answer
from .body import REFUSALS, REQUEST_BODY, UNAVAILABLE, refuse_invalid, rows_of
from .guard import Guard
from .model import Model
from .row import FEATURES
from .settings import Settings

settings = Settings()
# Whoever waits holds only the bytes of the request; what those become takes many times as much.
predictions = asyncio.Semaphore(settings.max_predictions_at_once)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port is opened: who can connect can predict."""
    app.state.model = Model(settings.model_directory, FEATURES)
    yield


app = FastAPI(title="cifar10", description=__doc__, version="0.1.0", lifespan=lifespan)
app.add_middleware(Guard, settings=settings)
app.exception_handler(RequestValidationError)(refuse_invalid)


def model_of(request: Request) -> Model:
    """Returns the model that the lifespan has loaded."""
    model: Model = request.app.state.model
    return model


# Routes are tried in the order in which they stand here, so the busy ones come first.
@app.post("/predict", response_model=Probabilities, responses=REFUSALS, openapi_extra=REQUEST_BODY)
async def predict(request: Request) -> Response:
    """Predicts the probabilities of every row."""
    async with predictions:
        rows = await rows_of(request)
        # A network takes milliseconds, in which the event loop would answer nobody else.
        probabilities = await run_in_threadpool(model_of(request).predict, rows)
    return answer(Probabilities(prediction=probabilities.tolist()))


@app.post("/predict/label", response_model=Labels, responses=REFUSALS, openapi_extra=REQUEST_BODY)
async def predict_label(request: Request) -> Response:
    """Predicts the label of every row."""
    async with predictions:
        rows = await rows_of(request)
        labels = await run_in_threadpool(model_of(request).predict_labels, rows)
    return answer(Labels(prediction=labels))


@app.get("/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@app.get("/ready", responses=UNAVAILABLE)
def ready(request: Request) -> dict[str, str]:
    """The model predicts; before it is loaded nobody can connect."""
    model_of(request).predict(model_of(request).sample)
    return {"status": "ready"}


@app.get("/metadata", responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """What the model is, where it came from and how good it is."""
    return model_of(request).metadata


@app.get("/label", responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """The labels by their index in a prediction."""
    return dict(enumerate(model_of(request).labels))


@app.get("/predict/test", response_model=Probabilities, responses=UNAVAILABLE)
def predict_test(request: Request) -> Response:
    """Predicts the sample row of the metadata."""
    model = model_of(request)
    return answer(Probabilities(prediction=model.predict(model.sample).tolist()))


@app.get("/predict/test/label", response_model=Labels, responses=UNAVAILABLE)
def predict_test_label(request: Request) -> Response:
    """Predicts the label of the sample row."""
    model = model_of(request)
    return answer(Labels(prediction=model.predict_labels(model.sample)))
