"""The servers that the measurement compares with: a plain one, an empty one and a careless one."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

MODELS = Path(__file__).parents[1] / "models"
SAMPLE = json.loads((MODELS / "metadata.json").read_text())["sample"]
session = onnxruntime.InferenceSession(MODELS / "model.onnx")


class PredictRequest(BaseModel):
    """What most first servers take."""

    data: list[list[float]]


class Prediction(BaseModel):
    """What most first servers answer."""

    prediction: list[list[float]]


class SampleRequest(BaseModel):
    """A request whose default is a sample, so that a body with a typing mistake gets an answer."""

    data: list[list[float]] = SAMPLE


def predict(rows: list[list[float]]) -> list[list[float]]:
    """Returns the probabilities [rows, classes] of rows [rows, features]."""
    inputs = {"X": np.array(rows, dtype=np.float32)}
    probabilities: list[list[float]] = session.run(["probabilities"], inputs)[0].tolist()
    return probabilities


plain = FastAPI()


@plain.post("/predict")
def predict_in_a_thread(request: PredictRequest) -> Prediction:
    """Predicts as FastAPI's own tutorial would."""
    return Prediction(prediction=predict(request.data))


noop = FastAPI()


@noop.post("/predict")
async def answer_a_constant() -> dict[str, str]:
    """Answers without a model: what the framework alone costs."""
    return {"status": "ok"}


careless = FastAPI()


@careless.post("/predict")
def predict_the_first_row(request: SampleRequest) -> Prediction:
    """Answers the first row only, and a request without rows with the sample's prediction."""
    return Prediction(prediction=predict(request.data)[:1])


@plain.get("/ready")
@noop.get("/ready")
@careless.get("/ready")
def ready() -> dict[str, str]:
    """The process answers."""
    return {"status": "ready"}
