"""The control of the contract test: a server that breaks the contract in every way it checks.

It is a naive first server that makes every mistake seen before.
"""

import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, WithJsonSchema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SAMPLE = [[5.1, 3.5, 1.4, 0.2]]


class PredictRequest(BaseModel):
    """Converts anything it can to numbers, and uses the sample if there are no rows."""

    data: list[list[float]] = SAMPLE


class Prediction(BaseModel):
    """The response of the prediction endpoints."""

    prediction: list[list[float]]


class NaiveLimit:
    """Limits concurrent requests, but wrongly.

    It never releases the place of a client that disconnects, and it also rejects `/health`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.requests_at_once = 0
        self.limit = int(os.environ.get("MAX_REQUESTS_AT_ONCE", "256"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.requests_at_once >= self.limit:
            await JSONResponse({"detail": "busy"}, 503)(scope, receive, send)
            return
        has_left = False

        async def watch() -> Message:
            nonlocal has_left
            message = await receive()
            has_left = has_left or message["type"] == "http.disconnect"
            return message

        self.requests_at_once += 1
        try:
            await self.app(scope, watch, send)
        finally:
            if not has_left:
                self.requests_at_once -= 1


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Exits immediately on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(NaiveLimit)


@app.exception_handler(RequestValidationError)
async def log_and_refuse(request: Request, error: RequestValidationError) -> Response:
    """Logs every refusal with the whole body."""
    logging.getLogger("uvicorn.error").warning("refused: 1 x 422 %s", error.body)
    return await request_validation_exception_handler(request, error)


@app.post("/predict", responses={408: {}, 413: {}, 503: {}})
@app.post("/predict/label", responses={408: {}, 413: {}, 503: {}})
async def predict(request: PredictRequest) -> Prediction:
    """Predicts only the first row, and fails on some values."""
    if not all(-1e300 < value < 1e300 for row in request.data for value in row):
        json.dumps(request.data, allow_nan=False)
    return Prediction(prediction=[row[:3] for row in request.data[:1]])


@app.get("/metadata", responses={503: {}})
async def metadata() -> dict[str, Any]:
    """Describes a row but not the model."""
    return {"sample": SAMPLE}


@app.get("/ready")
async def ready() -> dict[str, str]:
    """Reports ready as soon as the process runs."""
    return {"status": "ready"}


@app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
async def anything(path: str) -> dict[str, str]:
    """Answers any path with 200."""
    return {"status": path}


class IdsRequest(BaseModel):
    """Declares what an ID looks like, but does not check it."""

    data: list[Annotated[str, WithJsonSchema({"type": "string", "pattern": "^[0-9]{4}$"})]] = []


ids = FastAPI()


@ids.post("/predict")
async def predict_ids(request: IdsRequest) -> Prediction:
    return Prediction(prediction=[[1.0]] * len(request.data))


@ids.get("/metadata")
async def metadata_of_ids() -> dict[str, Any]:
    return {"sample": ["0000"]}


@ids.get("/ready")
@ids.get("/health")
async def ids_are_ready() -> dict[str, str]:
    return {"status": "ready"}


class Decisions(BaseModel):
    """What each of several models decides for a row."""

    prediction: list[dict[str, int]]


decisions = FastAPI()


@decisions.post("/predict")
async def decide(request: PredictRequest) -> Decisions:
    """Decides for the first row only."""
    return Decisions(prediction=[{"model": 1} for _ in request.data[:1]])


@decisions.get("/metadata")
async def metadata_of_decisions() -> dict[str, Any]:
    return {"sample": SAMPLE}


@decisions.get("/ready")
@decisions.get("/health")
async def decisions_are_ready() -> dict[str, str]:
    return {"status": "ready"}


class Answers(BaseModel):
    """What each of several services says of the rows."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Prediction]


services = FastAPI()


@services.post("/predict")
async def ask_services(request: PredictRequest) -> Answers:
    """Asks for the first row only."""
    of_service = Prediction(prediction=[[0.5, 0.5] for _ in request.data[:1]])
    return Answers.model_validate({"one": of_service, "two": of_service})


@services.get("/metadata")
async def metadata_of_services() -> dict[str, Any]:
    return {"sample": SAMPLE}


@services.get("/ready")
@services.get("/health")
async def services_are_ready() -> dict[str, str]:
    return {"status": "ready"}


class Partial(BaseModel):
    """What is known of each row."""

    prediction: list[list[float] | None]


class PartialLabels(BaseModel):
    """The label of each row."""

    prediction: list[str | None]


partial = FastAPI()


@partial.post("/predict")
async def predict_in_part(request: PredictRequest) -> Partial:
    """Asks for the first row only, and gives the others nothing."""
    return Partial(prediction=[[0.5, 0.5], *[None] * (len(request.data) - 1)])


@partial.post("/predict/label")
async def label_in_part(request: PredictRequest) -> PartialLabels:
    return PartialLabels(prediction=["a", *[None] * (len(request.data) - 1)])


@partial.get("/predict/test")
async def predict_test_in_part() -> Partial:
    return Partial(prediction=[[0.5, 0.5]])


@partial.get("/predict/test/label")
async def label_test_in_part() -> PartialLabels:
    return PartialLabels(prediction=["a"])


@partial.get("/metadata")
async def metadata_of_partial() -> dict[str, Any]:
    return {"sample": SAMPLE, "labels": ["a", "b"]}


@partial.get("/label")
async def labels_of_partial() -> dict[int, str]:
    return {0: "a", 1: "b"}


@partial.get("/ready")
@partial.get("/health")
async def partial_is_ready() -> dict[str, str]:
    return {"status": "ready"}
