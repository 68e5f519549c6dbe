"""Tells by the time of day in one zone which condition holds."""

import tomllib
from collections.abc import Sequence
from datetime import datetime, time, tzinfo
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

# Strict: otherwise Pydantic takes a number for the seconds since midnight.
Clock = Annotated[time, Field(strict=True)]


class BandsError(Exception):
    """The bands do not say for every time of day, once, which condition holds."""


class Band(BaseModel):
    """A part of the day, over midnight if it ends before it begins."""

    model_config = ConfigDict(extra="forbid")

    start: Clock = Field(alias="from")
    end: Clock = Field(alias="to")
    condition: Literal["upright", "upside-down"]

    def holds(self, at: time) -> bool:
        if self.start < self.end:
            return self.start <= at < self.end
        return at >= self.start or at < self.end


class Bands(BaseModel):
    """The parts of the day, in the time of a zone."""

    model_config = ConfigDict(extra="forbid")

    zone: ZoneInfo
    bands: list[Band] = Field(min_length=1)

    @model_validator(mode="after")
    def require_one_at_every_time(self) -> Self:
        edges = sorted({edge for band in self.bands for edge in (band.start, band.end)})
        for start, end in zip(edges, [*edges[1:], edges[0]], strict=True):
            count = sum(band.holds(start) for band in self.bands)
            if count != 1:
                where = f"in {count} bands" if count else "in no band"
                raise ValueError(f"{start:%H:%M:%S} to {end:%H:%M:%S} is {where}")
        return self


def load(path: Path) -> Bands:
    """Reads the bands of a file; raises a BandsError that says what is wrong with it."""
    try:
        return Bands.model_validate(tomllib.loads(path.read_text("utf-8")))
    except ValidationError as error:
        found = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
        reasons = "; ".join(": ".join(filter(None, reason)) for reason in found)
        raise BandsError(f"{path}: {reasons}") from None
    except (OSError, ValueError) as error:
        raise BandsError(f"{path}: {error}") from None


def condition_of(taken_at: datetime, bands: Sequence[Band], zone: tzinfo) -> str:
    """Returns the condition at a time that has an offset, whatever that is."""
    at = taken_at.astimezone(zone).time()
    return next(band.condition for band in bands if band.holds(at))
