"""Data that was fetched and prepared before is not fetched and prepared again."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from .cache import Found, State
from .codec import decode
from .docs import add_docs
from .guard import count_refusal
from .images import PictureError
from .model import Model, ModelError, NoAnswerError
from .pictures import Pictures
from .route import JsonRoute, refuse_invalid
from .schema import (
    PICTURE_ID,
    REFUSALS,
    SAMPLE,
    UNAVAILABLE,
    UNKNOWN,
    UNPREPARED,
    Labels,
    PredictRequest,
    Probabilities,
)
from .settings import Settings
from .store import UnknownPicturesError

settings = Settings()
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
IMAGE = {type_: {"schema": {"type": "string", "format": "binary"}} for type_ in IMAGE_TYPES}
HEADERS = {"headers": {"Cache-Status": {"schema": {"type": "string"}}}}
PREDICTED: dict[int | str, dict[str, Any]] = {200: HEADERS, **UNKNOWN}
STORED: dict[int | str, dict[str, Any]] = {
    201: {"description": "Stored", **HEADERS},
    204: {"description": "Stored in the place of another picture", **HEADERS},
    **REFUSALS,
}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port opens; Redis and PostgreSQL may be down."""
    async with Pictures.opened(settings) as pictures:
        model = Model(settings.model_directory)
        side = pictures.preprocessing.side
        if (model.pair, model.shape) != (pictures.pair, [3, side, side]):
            raise ModelError(
                f"preprocessing.json in {settings.model_directory} is of another model"
            )
        app.state.model, app.state.pictures = model, pictures
        app.state.metadata = json.loads((settings.model_directory / "metadata.json").read_bytes())
        yield


app = FastAPI(
    title="data_cache_pattern",
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


@app.exception_handler(UnknownPicturesError)
async def refuse_unknown(_: Request, error: Exception) -> JSONResponse:
    """Names the pictures that the store does not have."""
    count_refusal(404, "unknown pictures")
    return JSONResponse({"detail": str(error)}, 404)


@app.exception_handler(PictureError)
@app.exception_handler(NoAnswerError)
async def refuse_picture(_: Request, error: Exception) -> JSONResponse:
    """Says why a picture cannot be prepared, or that the model computes NaN or infinity for it."""
    count_refusal(422, type(error).__name__)
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(TimeoutError)
@app.exception_handler(DBAPIError)
async def refuse_without_store(_: Request, error: Exception) -> JSONResponse:
    """PostgreSQL is down or too slow, or has not got the table."""
    cause = getattr(error, "orig", error)
    # PostgreSQL's reason is in the first line.
    reason = str(cause).partition("\n")[0][:200]
    count_refusal(503, f"the store: {reason or type(cause).__name__}")
    detail = "the store of the pictures, PostgreSQL, is not available"
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


def model_of(request: Request) -> Model:
    """Returns the model that the lifespan loaded."""
    model: Model = request.app.state.model
    return model


def pictures_of(request: Request) -> Pictures:
    """Returns the pictures that the lifespan opened."""
    pictures: Pictures = request.app.state.pictures
    return pictures


async def predict_pictures(request: Request, ids: list[str]) -> tuple[NDArray[np.float32], Found]:
    """Returns the probabilities of each picture, which the model computes for every request."""
    pictures, model = pictures_of(request), model_of(request)
    found = await pictures.get_many(ids)
    tensors = decode(found.values, pictures.preprocessing.side)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(pictures.thread, model.predict, tensors), found


def answer(body: BaseModel, found: Found) -> Response:
    """Says in a header where the prepared pictures come from."""
    headers = {"cache-status": found.cache_status}
    return Response(body.model_dump_json(), headers=headers, media_type="application/json")


@app.post(
    "/predict", tags=["prediction"], response_model=Probabilities, responses=PREDICTED | REFUSALS
)
async def predict(request: Request, body: PredictRequest) -> Response:
    """Predicts the probabilities of every picture."""
    probabilities, found = await predict_pictures(request, body.data)
    return answer(Probabilities(prediction=probabilities.tolist()), found)


@app.post(
    "/predict/label", tags=["prediction"], response_model=Labels, responses=PREDICTED | REFUSALS
)
async def predict_label(request: Request, body: PredictRequest) -> Response:
    """Predicts the label of every picture."""
    probabilities, found = await predict_pictures(request, body.data)
    labels = model_of(request).labels
    return answer(Labels(prediction=[labels[i] for i in probabilities.argmax(axis=1)]), found)


@app.put(
    "/data/{picture_id}",
    tags=["data"],
    status_code=201,
    response_class=Response,
    responses=STORED,
    openapi_extra={"requestBody": {"required": True, "content": IMAGE}},
)
async def put_picture(
    request: Request, picture_id: Annotated[str, Path(pattern=PICTURE_ID)]
) -> Response:
    """Stores a picture, and prepares it before anybody asks for it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in IMAGE_TYPES or "content-encoding" in request.headers:
        count_refusal(415, "the body is not a picture")
        raise HTTPException(415, f"send one of {', '.join(IMAGE_TYPES)}, without an encoding")
    is_new, is_cached = await pictures_of(request).put(picture_id, await request.body())
    status = "redis; fwd=method; stored" if is_cached else "redis; fwd=method"
    return Response(status_code=201 if is_new else 204, headers={"cache-status": status})


@app.get("/cache", tags=["cache"], responses=UNAVAILABLE)
async def cache(request: Request) -> State:
    """Counts what this process has found and prepared, and what Redis holds."""
    return await pictures_of(request).cache.state()


@app.get(
    "/predict/test",
    tags=["prediction"],
    response_model=Probabilities,
    responses=PREDICTED | UNPREPARED | UNAVAILABLE,
)
async def predict_test(request: Request) -> Response:
    """Predicts the sample picture."""
    return await predict(request, PredictRequest(data=SAMPLE))


@app.get(
    "/predict/test/label",
    tags=["prediction"],
    response_model=Labels,
    responses=PREDICTED | UNPREPARED | UNAVAILABLE,
)
async def predict_test_label(request: Request) -> Response:
    """Predicts the label of the sample picture."""
    return await predict_label(request, PredictRequest(data=SAMPLE))


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """The model is loaded, and the store answers if every request needs it."""
    if settings.freshness == "version":
        await pictures_of(request).store.check()
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the model: version, origin, input, output and metrics."""
    found: dict[str, Any] = request.app.state.metadata
    return found


@app.get("/label", tags=["model"], responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return dict(enumerate(model_of(request).labels))


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
