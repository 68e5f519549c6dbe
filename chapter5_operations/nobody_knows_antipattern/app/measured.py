"""Defines a request that says its unit, and whose values are near those of the training."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, FailFast, Field

from .range import Bounds
from .schema import PredictRequest, Row, show_sample
from .settings import Settings

# The lifespan writes it once it has read the card.
trained: list[Bounds] = []


def near_training(row: list[float]) -> list[float]:
    """Returns the row if each value is within the bounds of its feature."""
    for value, (feature, low, high) in zip(row, trained, strict=True):
        if not low <= value <= high:
            bound, than = (low, "greater") if value < low else (high, "less")
            bound_text = f"{than} than or equal to {bound:g}"
            raise ValueError(f"Input should be {bound_text}: {feature} in training")
    return row


def show_bounds(schema: dict[str, Any]) -> None:
    """Adds the sample with its unit, and the bounds of every column."""
    show_sample(schema)
    schema["example"] = {"unit": "cm", **schema["example"]}
    rows = schema["properties"]["data"]["items"]
    del rows["items"]
    rows["prefixItems"] = [
        {"type": "number", "title": feature, "minimum": low, "maximum": high}
        for feature, low, high in trained
    ]


class MeasuredRequest(PredictRequest):
    """Rows of numbers, one per feature, in the order that `/metadata` gives, and their unit."""

    model_config = PredictRequest.model_config | {"json_schema_extra": show_bounds}

    unit: Literal["cm"]
    data: Annotated[list[Annotated[Row, AfterValidator(near_training)]], FailFast()] = Field(
        min_length=1, max_length=Settings().max_rows
    )
