# Copied from chapter4_serving_patterns/web_single_pattern/app/schema.py with FEATURES = 4->FEATURES = 3 * 32 * 32, The largest number of float32 in which the model computes->The red values of a picture stand before the green and the blue ones as in CIFAR-10's files, 3.4028234663852886e38->255, LOWEST = -HIGHEST->LOWEST = 0
"""Defines what a request, an answer and a refusal look like, and which values a row may hold."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .settings import Settings

FEATURES = 3 * 32 * 32
# The red values of a picture stand before the green and the blue ones as in CIFAR-10's files.
HIGHEST = 255
LOWEST = 0

# Strict, because otherwise `true` and "1.5" are numbers.
Feature = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=LOWEST, le=HIGHEST)]
Row = Annotated[list[Feature], Field(min_length=FEATURES, max_length=FEATURES)]


def show_sample(schema: dict[str, Any]) -> None:
    """Adds the sample of the metadata as an example, which the page at `/docs` shows."""
    metadata = json.loads((Settings().model_directory / "metadata.json").read_bytes())
    schema["example"] = {"data": metadata["sample"]}


class PredictRequest(BaseModel):
    """Rows of numbers; `/metadata` names the features in their order."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=show_sample)

    data: list[Row] = Field(min_length=1, max_length=Settings().max_rows)


class Probabilities(BaseModel):
    """For each row the probability of each label, in the order of `/label`."""

    prediction: list[list[float]]


class Labels(BaseModel):
    """For each row its most probable label."""

    prediction: list[str]


class Refusal(BaseModel):
    """Why a request was not answered."""

    detail: str | list[dict[str, Any]]


UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": Refusal, "description": "Not now: try again"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Refusal, "description": "The body was not complete at its deadline"},
    413: {"model": Refusal, "description": "The body is too large"},
    422: {"model": Refusal, "description": "Not a valid request"},
    **UNAVAILABLE,
}
