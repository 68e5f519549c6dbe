# Copied from chapter4_serving_patterns/web_single_pattern/app/schema.py with FEATURES = 4->FEATURES = 8 * 8, The largest float32: the model computes with this type->Black and white: far beyond them the model computes infinity minus infinity, 3.4028234663852886e38->16.0, LOWEST = -HIGHEST->LOWEST = 0.0
"""Defines the bodies of requests, responses and errors, and the valid values of a row."""

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from .settings import Settings

FEATURES = 8 * 8
# Black and white: far beyond them the model computes infinity minus infinity.
HIGHEST = 16.0
LOWEST = 0.0

# Strict: otherwise Pydantic accepts `true` and "1.5" as numbers.
Feature = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=LOWEST, le=HIGHEST)]
# One invalid value is enough to reject a request, and collecting thousands would take too long.
Row = Annotated[list[Feature], Field(min_length=FEATURES, max_length=FEATURES), FailFast()]


def show_sample(schema: dict[str, Any]) -> None:
    """Adds the sample from the metadata as the example that `/docs` shows."""
    metadata = json.loads((Settings().model_directory / "metadata.json").read_bytes())
    schema["example"] = {"data": metadata["sample"]}


class PredictRequest(BaseModel):
    """Rows of numbers, one per feature, in the order that `/metadata` gives."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=show_sample)

    data: Annotated[list[Row], FailFast()] = Field(min_length=1, max_length=Settings().max_rows)


class Probabilities(BaseModel):
    """The probability of each label for each row, in the order of `/label`."""

    prediction: list[list[float]]


class Labels(BaseModel):
    """The most probable label of each row."""

    prediction: list[str]


class Refusal(BaseModel):
    """Why a request was rejected."""

    detail: str | list[dict[str, Any]]


UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": Refusal, "description": "Overloaded or not ready: try again later"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Refusal, "description": "The body did not arrive in time"},
    413: {"model": Refusal, "description": "The body is too large"},
    415: {"model": Refusal, "description": "The body is not JSON in UTF-8"},
    422: {"model": Refusal, "description": "The request is invalid"},
    **UNAVAILABLE,
}
