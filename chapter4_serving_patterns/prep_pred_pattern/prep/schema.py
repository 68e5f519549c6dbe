"""Defines the bodies of requests, responses and errors."""

import base64
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from .settings import Settings

# A body of one of these types is one picture.
PICTURE_TYPES = ("image/jpeg", "image/png", "image/webp")
# Strict: otherwise Pydantic would accept bytes.
Picture = Annotated[
    str,
    Field(
        strict=True,
        min_length=1,
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/*"},
    ),
]


def show_sample(schema: dict[str, Any]) -> None:
    """Adds the photo from the training as the example that `/docs` shows."""
    sample = (Settings().model_directory / "sample.jpg").read_bytes()
    schema["example"] = {"data": [base64.b64encode(sample).decode()]}


class PredictRequest(BaseModel):
    """Pictures in base64: JPEG, PNG or WebP."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=show_sample)

    data: Annotated[list[Picture], FailFast()] = Field(
        min_length=1, max_length=Settings().max_pictures
    )


class Probabilities(BaseModel):
    """The probability of each label for each picture, in the order of `/label`."""

    prediction: list[list[float]]


class Labels(BaseModel):
    """The most probable label of each picture."""

    prediction: list[str]


class Refusal(BaseModel):
    """Why a request was rejected."""

    detail: str | list[dict[str, Any]]


UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    502: {"model": Refusal, "description": "The response of pred is invalid"},
    503: {"model": Refusal, "description": "Overloaded, or pred is out of reach or another pair"},
    504: {"model": Refusal, "description": "No response from pred within the deadline"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Refusal, "description": "The body did not arrive in time"},
    413: {"model": Refusal, "description": "The body is too large"},
    415: {"model": Refusal, "description": "The body is neither JSON in UTF-8 nor a picture"},
    422: {"model": Refusal, "description": "The request or one of its pictures is invalid"},
    **UNAVAILABLE,
}


def bodies_of_pictures() -> dict[str, Any]:
    """Describes the bodies of a prediction for the OpenAPI document."""
    content: dict[str, Any] = {media_type: {"schema": {}} for media_type in PICTURE_TYPES}
    content["application/json"] = {"schema": {"$ref": "#/components/schemas/PredictRequest"}}
    return {"requestBody": {"required": True, "content": content}}
