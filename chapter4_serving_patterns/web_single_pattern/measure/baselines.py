"""The servers that the measurement compares with, from a first one to an empty one."""

import numpy as np
import onnxruntime
from fastapi import FastAPI
from fastapi.routing import APIRoute, request_response
from pydantic import BaseModel

from ..app import main
from ..app.route import JsonRoute

SAMPLE = [[5.1, 3.5, 1.4, 0.2]]
session = onnxruntime.InferenceSession(main.settings.model_directory / "model.onnx")


class PredictRequest(BaseModel):
    """What most first servers take."""

    data: list[list[float]]


class Prediction(BaseModel):
    """What most first servers answer."""

    prediction: list[list[float]]


class SampleRequest(BaseModel):
    """Takes a sample for rows that are missing, so a misspelt field still gets an answer."""

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
    """Predicts as FastAPI's own tutorial would."""
    return Prediction(prediction=predict(request.data))


@plain_async.post("/predict")
async def predict_in_the_event_loop(request: PredictRequest) -> Prediction:
    """Predicts without a thread."""
    return Prediction(prediction=predict(request.data))


@noop.post("/predict")
async def answer_a_constant() -> dict[str, str]:
    """Answers without a model: what the framework alone costs."""
    return {"status": "ok"}


@careless.post("/predict")
def predict_the_first_row(request: SampleRequest) -> Prediction:
    """Answers the first row only, and a request without rows with the sample's prediction."""
    return Prediction(prediction=predict(request.data)[:1])


@plain.get("/ready")
@plain_async.get("/ready")
@noop.get("/ready")
@careless.get("/ready")
def ready() -> dict[str, str]:
    """The process answers."""
    return {"status": "ready"}
