"""Reads from the card of a model which unit and which values it was trained for."""

import math
from typing import Any, NamedTuple

UNIT = "cm"


class CardError(Exception):
    """The card does not say what the model was trained for."""


class Bounds(NamedTuple):
    """The lowest and the highest value of a feature, in the unit of the card."""

    feature: str
    low: float
    high: float


def bounds_of(card: dict[str, Any], features: int, margin_share: float) -> list[Bounds]:
    """Returns the trained range of each feature, wider by a share of it on both sides.

    Raises:
        CardError: the unit is another one, or a range is missing or none.
    """
    if (unit := card.get("unit")) != UNIT:
        raise CardError(f"the unit of the model is {unit!r}, and requests say {UNIT!r}")
    ranges = card.get("range")
    if not isinstance(ranges, dict) or len(ranges) != features:
        raise CardError(f"the card needs a range for each of {features} features: {ranges!r}")
    return [bounds(feature, pair, margin_share) for feature, pair in ranges.items()]


def bounds(feature: str, pair: object, margin_share: float) -> Bounds:
    match pair:
        case [int() | float() as low, int() | float() as high] if low < high:
            margin = margin_share * (high - low)
            found = Bounds(feature, low - margin, high + margin)
            if math.isfinite(found.low) and math.isfinite(found.high):
                return found
    raise CardError(f"{feature}: {pair!r} is no range from a lower to a higher value")
