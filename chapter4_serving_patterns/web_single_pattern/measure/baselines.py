"""The servers to compare with: a typical first server, variants of it and a no-op route."""

import os

import numpy as np
from fastapi import FastAPI
from fastapi.routing import APIRoute, request_response
from pydantic import BaseModel

from ..app import main
from ..app.route import JsonRoute

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

SAMPLE = [[5.1, 3.5, 1.4, 0.2]]
session = onnxruntime.InferenceSession(main.settings.model_directory / "model.onnx")


class PredictRequest(BaseModel):
    data: list[list[float]]


class Prediction(BaseModel):
    prediction: list[list[float]]


class SampleRequest(BaseModel):
    """Defaults to a sample, so a request with a misspelt field still gets a prediction."""

    data: list[list[float]] = SAMPLE


def predict(rows: list[list[float]]) -> list[list[float]]:
    """Returns the probabilities [rows, classes] of rows [rows, features]."""
    inputs = {"X": np.array(rows, dtype=np.float32)}
    probabilities: list[list[float]] = session.run(["probabilities"], inputs)[0].tolist()
    return probabilities


plain, plain_async, noop, careless = FastAPI(), FastAPI(), FastAPI(), FastAPI()
# The shipped server with FastAPI's own routes.
without_json_route = main.app
for route in without_json_route.routes:
    if isinstance(route, JsonRoute):
        route.app = request_response(APIRoute.get_route_handler(route))


@plain.post("/predict")
def predict_in_a_thread(request: PredictRequest) -> Prediction:
    """Predicts as in FastAPI's own tutorial: FastAPI runs a `def` handler in a thread."""
    return Prediction(prediction=predict(request.data))


@plain_async.post("/predict")
async def predict_in_the_event_loop(request: PredictRequest) -> Prediction:
    return Prediction(prediction=predict(request.data))


@noop.post("/predict")
async def answer_a_constant() -> dict[str, str]:
    """Returns a constant without calling a model: the cost of the framework alone."""
    return {"status": "ok", "health": "ok"}


@careless.post("/predict")
def predict_the_first_row(request: SampleRequest) -> Prediction:
    """Predicts only the first row, or the sample if the request has no rows."""
    return Prediction(prediction=predict(request.data)[:1])


@plain.get("/ready")
@plain_async.get("/ready")
@noop.get("/ready")
@careless.get("/ready")
def ready() -> dict[str, str]:
    return {"status": "ready"}
