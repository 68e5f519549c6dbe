"""Defines the bodies of requests, with the time when the picture was taken."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, ConfigDict, Field

from .schema import PredictRequest, show_sample

# Pydantic also takes a number for a time, and a date for its midnight.
TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt ][\d:.,]{5,18}([Zz]|[+-]\d{2}:?\d{2})", re.ASCII)
EXAMPLE = datetime.fromisoformat("2025-06-21T09:00:00+02:00")
# No older picture is from a camera that hangs here, and near year 1 a time has no local one.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
# Clocks differ. A time further ahead is wrong, and then its condition is, too.
AHEAD = timedelta(minutes=5)


def require_time_with_offset(value: Any) -> Any:
    if not (isinstance(value, str) and TIME.fullmatch(value)):
        raise ValueError(f"should be a time with its offset, such as {EXAMPLE.isoformat()}")
    return value


def require_past(taken_at: datetime) -> datetime:
    if not EARLIEST <= taken_at <= datetime.now(UTC) + AHEAD:
        raise ValueError("should be from 1970 or later, and not in the future")
    return taken_at


TakenAt = Annotated[
    AwareDatetime, BeforeValidator(require_time_with_offset), AfterValidator(require_past)
]


def show_example(schema: dict[str, Any]) -> None:
    """Adds the sample and the time of the example, which `/docs` shows."""
    show_sample(schema)
    schema["example"]["taken_at"] = EXAMPLE.isoformat()


class DatedRequest(PredictRequest):
    """Rows of pixels, and the time that says how the camera hung."""

    model_config = ConfigDict(json_schema_extra=show_example)

    taken_at: TakenAt


class RoutedRequest(PredictRequest):
    """Rows of pixels for this model; `taken_at` is ignored, because the header has decided."""

    taken_at: str | None = Field(default=None, max_length=40)
