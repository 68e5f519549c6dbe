"""The control: router with bands that include their last moment, as a first version has them."""

from collections.abc import Sequence
from datetime import datetime, time, tzinfo

from ..app import conditions, router
from ..app.conditions import Band


def holds_until_its_end(band: Band, at: time) -> bool:
    if band.start < band.end:
        return band.start <= at <= band.end
    return at >= band.start or at <= band.end


def first_condition_of(taken_at: datetime, bands: Sequence[Band], zone: tzinfo) -> str:
    at = taken_at.astimezone(zone).time()
    return next(band.condition for band in bands if holds_until_its_end(band, at))


conditions.condition_of = first_condition_of
app = router.app
