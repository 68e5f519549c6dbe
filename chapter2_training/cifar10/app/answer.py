# Copied from chapter4_serving_patterns/web_single_pattern/app/answer.py
"""Says what a prediction looks like, and writes it."""

from fastapi import Response
from pydantic import BaseModel


class Probabilities(BaseModel):
    """For each row the probability of each label, in the order of `/label`."""

    prediction: list[list[float]]


class Labels(BaseModel):
    """For each row its most probable label."""

    prediction: list[str]


def answer(content: Probabilities | Labels) -> Response:
    """Serializes straight to bytes."""
    return Response(content.model_dump_json(), media_type="application/json")
