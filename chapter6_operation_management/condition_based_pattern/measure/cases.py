"""The table of requests and the model that each of them has to reach."""

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import product
from typing import NamedTuple

UPRIGHT, UPSIDE_DOWN = "digits_upright", "digits_upside_down"
# No value of the header `target` that the manifests name.
UNKNOWN = (
    *("mountain", "Upright", "UPRIGHT", "upside_down", "upsidedown", "upside-down-", "up right"),
    *("upright,upside-down", "upright, upright", "upright;q=1", '"upright"', "0", ""),
)
# Of Berlin: winter, summer, and the two Sundays on which the clock changes at night. Each with its
# offset at midnight and the one from 3 o'clock on, in hours.
DATES = {
    "2025-01-15": (1, 1),
    "2025-07-15": (2, 2),
    "2025-03-30": (1, 2),
    "2025-10-26": (2, 1),
}
# The first moment of each band, the model before it, and the one from it on.
EDGES = {
    "07:00": (UPSIDE_DOWN, UPRIGHT),
    "11:00": (UPRIGHT, UPRIGHT),
    "19:00": (UPRIGHT, UPSIDE_DOWN),
}
# The same instant as cameras elsewhere write it: Berlin itself, UTC, Tokyo, Kathmandu, Honolulu.
OFFSETS = (None, timedelta(0), timedelta(hours=9), timedelta(hours=5.75), timedelta(hours=-10))


class Case(NamedTuple):
    """A request: its headers as they are sent, its time, and the model; None if it is refused."""

    headers: tuple[tuple[str, str], ...]
    taken_at: str | None
    model: str | None


def cases() -> list[Case]:
    return [*by_header(), *by_edge(), *by_night(), *refused()]


def by_header() -> Iterator[Case]:
    """The header in different writing; it wins over the time of the picture."""
    targets = {"upright": UPRIGHT, "upside-down": UPSIDE_DOWN}
    for name, (value, model) in product(("target", "Target", "TARGET"), targets.items()):
        for written in (value, f" {value} ", f"\t{value}", f"{value}   "):
            yield Case(((name, written),), None, model)
    for (value, model), hour in product(targets.items(), ("09", "21")):
        yield Case((("target", value),), f"2025-07-15T{hour}:00:00+02:00", model)


def by_edge() -> Iterator[Case]:
    """The last millisecond before each edge, the edge itself, and the first one after it."""
    for number, (date, edge) in enumerate(product(DATES, EDGES)):
        _, offset = DATES[date]
        before, after = EDGES[edge]
        begins = datetime.fromisoformat(f"{date}T{edge}:00+0{offset}:00")
        # Every edge in the writing of Berlin, and in one of the others.
        for zone in (None, OFFSETS[1 + number % 4]):
            for shift_ms, model in ((-1, before), (0, after), (1, after)):
                moment = begins + timedelta(milliseconds=shift_ms)
                yield Case((), written(moment, zone), model)


def by_night() -> Iterator[Case]:
    """Midnight, and the hours that a change of the clock leaves out or repeats."""
    for date, (offset, _) in DATES.items():
        midnight = datetime.fromisoformat(f"{date}T00:00:00+0{offset}:00")
        for minutes in (-1, 0, 1, 119, 120, 150, 180, 210):
            moment = midnight + timedelta(minutes=minutes)
            yield Case((), written(moment, OFFSETS[minutes % 5]), UPSIDE_DOWN)


def refused() -> Iterator[Case]:
    """What says nothing about the condition, or nothing that can be true."""
    for value in UNKNOWN:
        yield Case((("target", value),), "2025-07-15T09:00:00+02:00", None)
    yield Case((("target", "upright"), ("target", "upside-down")), None, None)
    for taken_at in (
        *(None, "", "now", "09:00", "2025-07-15", "2025-07-15T09:00:00", "1752562800"),
        *("0000-07-15T09:00:00Z", "0001-01-01T00:00:00+14:00", "2262-04-12T09:00:00Z"),
        *("9999-12-31T23:59:59-12:00", "2025-02-30T09:00:00Z", "2025-07-15T25:00:00Z"),
    ):
        yield Case((), taken_at, None)


def written(moment: datetime, offset: timedelta | None) -> str:
    at = moment if offset is None else moment.astimezone(timezone(offset))
    return at.isoformat(timespec="milliseconds")
