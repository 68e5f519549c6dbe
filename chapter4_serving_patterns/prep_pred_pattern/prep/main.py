"""Preprocessing and prediction run apart and answer only as the pair that was trained together."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, cast

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from numpy.typing import NDArray

from .docs import add_docs
from .guard import count_refusal
from .images import PictureError, tensor_from
from .pair import Half, load
from .pixels import Preprocessing
from .predictor import PredError, Predictor
from .route import JsonRoute, body_of, parse, refuse_invalid
from .schema import (
    PICTURE_TYPES,
    REFUSALS,
    UNAVAILABLE,
    Labels,
    PredictRequest,
    Probabilities,
    bodies_of_pictures,
)
from .settings import Settings

settings = Settings()
# Texts in base64, or one file.
Pictures = Sequence[str | bytes]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keeps one pool of connections to pred, and one thread that decodes pictures."""
    half = load(settings.model_directory)
    app.state.half = half
    predictor = Predictor(
        settings.pred_url,
        half.metadata["name"],
        half.pair if settings.check_pair else None,
        settings.deadline_seconds,
        settings.max_requests_at_once,
    )
    app.state.predictor = predictor
    # One thread, because more would share the core, and each may need much memory.
    with ThreadPoolExecutor(max_workers=1) as thread:
        app.state.thread = thread
        yield
    await predictor.close()


app = FastAPI(
    title="prep_pred_pattern",
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


@app.exception_handler(PictureError)
async def refuse_picture(_: Request, error: Exception) -> JSONResponse:
    """Says what is wrong with which picture."""
    count_refusal(422, "a picture cannot be decoded within the limits")
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(PredError)
async def say_why(_: Request, error: PredError) -> JSONResponse:
    """Responds with the status and reason of a failed call."""
    count_refusal(error.status, error.reason)
    headers = {"retry-after": "1"} if error.status == 503 else {}
    return JSONResponse({"detail": str(error)}, error.status, headers)


def half_of(request: Request) -> Half:
    """Returns what the lifespan has read."""
    half: Half = request.app.state.half
    return half


async def pictures_of(request: Request) -> Pictures:
    """Returns the pictures of a request: one if the body is a picture, else texts in base64."""
    content = await body_of(request)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in PICTURE_TYPES:
        return [content]
    return cast("PredictRequest", parse(PredictRequest, content, request.scope)).data


def decoded(picture: str | bytes) -> bytes:
    try:
        return base64.b64decode(picture, validate=True) if isinstance(picture, str) else picture
    except ValueError as error:
        raise PictureError("not base64") from error


def tensors_of(pictures: Pictures, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Decodes and preprocesses pictures.

    Raises:
        PictureError: one of them cannot be decoded; the error says which.
    """
    tensors = []
    for index, picture in enumerate(pictures):
        try:
            tensors.append(tensor_from(decoded(picture), preprocessing))
        except PictureError as error:
            raise PictureError(f"picture {index}: {error}") from error
    return np.stack(tensors)


async def predicted(request: Request, pictures: Pictures) -> NDArray[np.float32]:
    """Preprocesses in the thread, so that `/health` responds meanwhile, and asks pred."""
    loop = asyncio.get_running_loop()
    preprocessing = half_of(request).preprocessing
    tensors = await loop.run_in_executor(
        request.app.state.thread, tensors_of, pictures, preprocessing
    )
    predictor: Predictor = request.app.state.predictor
    return await predictor.predict(tensors)


async def probabilities_of(request: Request, pictures: Pictures) -> Probabilities:
    return Probabilities(prediction=(await predicted(request, pictures)).tolist())


async def labels_of(request: Request, pictures: Pictures) -> Labels:
    labels = half_of(request).labels
    indices = (await predicted(request, pictures)).argmax(axis=1)
    return Labels(prediction=[labels[index] for index in indices])


@app.post("/predict", tags=["prediction"], responses=REFUSALS, openapi_extra=bodies_of_pictures())
async def predict(request: Request) -> Probabilities:
    """Predicts the probabilities of every picture."""
    return await probabilities_of(request, await pictures_of(request))


@app.post(
    "/predict/label", tags=["prediction"], responses=REFUSALS, openapi_extra=bodies_of_pictures()
)
async def predict_label(request: Request) -> Labels:
    """Predicts the label of every picture."""
    return await labels_of(request, await pictures_of(request))


@app.get("/predict/test", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test(request: Request) -> Probabilities:
    """Predicts the probabilities of the photo from the training."""
    return await probabilities_of(request, [half_of(request).sample])


@app.get("/predict/test/label", tags=["prediction"], responses=UNAVAILABLE)
async def predict_test_label(request: Request) -> Labels:
    """Predicts the label of the photo from the training."""
    return await labels_of(request, [half_of(request).sample])


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """Reports whether pred is within reach and belongs to the same pair."""
    predictor: Predictor = request.app.state.predictor
    await predictor.require_pair()
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the pair: version, origin, input, output and metrics."""
    return half_of(request).metadata


@app.get("/label", tags=["model"], responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return dict(enumerate(half_of(request).labels))


def openapi() -> dict[str, Any]:
    """Adds the schema of a body that FastAPI does not parse, because it may be a picture."""
    document = FastAPI.openapi(app)
    document["components"]["schemas"]["PredictRequest"] = PredictRequest.model_json_schema()
    return document


app.openapi = openapi  # type: ignore[method-assign]
# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
