"""Defines the bodies of responses and errors, and reads the limits of a request from a model."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, Field

from .model import Model, ModelError
from .settings import Settings

# The largest float32: models compute with this type.
HIGHEST = 3.4028234663852886e38


class Limits(NamedTuple):
    """What a value, a row and a list of rows may be; each is what Pydantic's `Field` returns."""

    value: Any
    row: Any
    rows: Any


def width_in(directory: Path) -> int:
    """Returns how many numbers a row of the model in a directory has.

    Raises:
        ModelError: the metadata does not say it.
    """
    try:
        return len(json.loads((directory / "metadata.json").read_bytes())["sample"][0])
    except (OSError, ValueError, LookupError, TypeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ModelError(f"no sample in {directory} (run python -m train): {what}") from error


def limits_of(model: Model) -> Limits:
    """Returns the limits of a request, which come with the model."""
    described = model.metadata["input"]
    lowest, highest = described.get("minimum", -HIGHEST), described.get("maximum", HIGHEST)
    width, most = len(model.sample[0]), Settings().max_rows
    return Limits(
        # Strict: otherwise Pydantic accepts `true` and "1.5" as numbers.
        value=Field(strict=True, allow_inf_nan=False, ge=lowest, le=highest),
        row=Field(min_length=width, max_length=width),
        rows=Field(min_length=1, max_length=min(most, described.get("max_rows", most))),
    )


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
