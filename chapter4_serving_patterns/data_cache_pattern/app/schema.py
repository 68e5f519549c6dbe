"""Defines the bodies of requests, responses and errors, and what the ID of a picture looks like."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

from .settings import Settings

# Nothing that has a meaning in a path, in a key or in SQL.
PICTURE_ID = "^[0-9A-Za-z_-]{1,64}$"
# What `/predict/test` predicts; the service `seed` stores it.
SAMPLE = ["0000"]

PictureId = Annotated[str, Field(pattern=PICTURE_ID)]


class PredictRequest(BaseModel):
    """The IDs of pictures in the store; the same ID may come twice."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"data": [*SAMPLE]}})

    data: Annotated[list[PictureId], FailFast()] = Field(
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
    503: {"model": Refusal, "description": "Overloaded, not ready, or without the store"},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "The store has no picture with this ID"},
}
UNPREPARED: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "What the store has is not a picture"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Refusal, "description": "The body did not arrive in time"},
    413: {"model": Refusal, "description": "The body is too large"},
    415: {"model": Refusal, "description": "The body is of another type"},
    422: {"model": Refusal, "description": "The request is invalid"},
    **UNAVAILABLE,
}
