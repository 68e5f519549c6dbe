# Copied from chapter4_serving_patterns/web_single_pattern/app/main.py with One server holds interface->The model is inside the image, checks and model: the shortest way from a model to an endpoint->so one tag says which server and which model run, web_single_pattern->model_in_image_pattern
"""The model is inside the image, so one tag says which server and which model run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

from .answer import Labels, Probabilities, answer
from .body import REFUSALS, REQUEST_BODY, UNAVAILABLE, refuse_invalid, rows_of
from .guard import Guard
from .model import Model
from .row import FEATURES
from .settings import Settings

settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port is opened: who can connect can predict."""
    app.state.model = Model(settings.model_directory, FEATURES)
    yield


app = FastAPI(title="model_in_image_pattern", description=__doc__, version="0.1.0", lifespan=lifespan)
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
    rows = await rows_of(request)
    return answer(Probabilities(prediction=model_of(request).predict(rows).tolist()))


@app.post("/predict/label", response_model=Labels, responses=REFUSALS, openapi_extra=REQUEST_BODY)
async def predict_label(request: Request) -> Response:
    """Predicts the label of every row."""
    rows = await rows_of(request)
    return answer(Labels(prediction=model_of(request).predict_labels(rows)))


@app.get("/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@app.get("/ready", responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
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
async def predict_test(request: Request) -> Response:
    """Predicts the sample row of the metadata."""
    model = model_of(request)
    return answer(Probabilities(prediction=model.predict(model.sample).tolist()))


@app.get("/predict/test/label", response_model=Labels, responses=UNAVAILABLE)
async def predict_test_label(request: Request) -> Response:
    """Predicts the label of the sample row."""
    model = model_of(request)
    return answer(Labels(prediction=model.predict_labels(model.sample)))
