"""Judges one window after the other, as far as the log has been shipped."""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, func, select, text
from sqlalchemy.dialects.postgresql import insert

from . import baseline
from .judge import Check, Sample, judge, speaking
from .observed import windows
from .settings import Settings
from .tables import records

log = logging.getLogger("monitor")

# A clock that is ahead must not close windows whose records are still to come.
WATERMARK = text("SELECT least(max(at), now()) FROM records")
MODELS = text("""SELECT DISTINCT body ->> 'model' FROM records WHERE kind = 'prediction'
    AND NOT body ? 'test' AND at >= :began AND at < :ended""")
# How a check went in the last two windows.
TOO_FEW, QUIET, SPEAKS = -1, 0, 1
DECILES = np.arange(0.1, 1, 0.1)


def judge_next(connection: Connection, settings: Settings) -> bool:
    """Judges the next window that is complete, and tells whether there was one."""
    watermark: datetime | None = connection.scalar(WATERMARK)
    span = next_span(connection, settings.window_seconds)
    grace = timedelta(seconds=settings.window_grace_seconds)
    if watermark is None or span is None or watermark < span[1] + grace:
        return False
    for model in connection.scalars(MODELS, {"began": span[0], "ended": span[1]}).all():
        window = baseline.window_of(connection, model, span)
        known = baseline.find(connection, model)
        known = known or baseline.take_first(connection, model, watermark, settings)
        checks: list[Check] = []
        if known and known[0] <= span[0]:
            checks = judge(window, known[1])
        store(connection, span[1], model, window, checks)
    return True


def next_span(connection: Connection, seconds: float) -> baseline.Span | None:
    """Returns the bounds of the first window with predictions that is not judged yet."""
    last = connection.scalar(select(func.max(windows.c.ended))) or baseline.EVER[0]
    of_callers = (records.c.kind == "prediction") & ~records.c.body.has_key("test")
    unjudged = select(func.min(records.c.at)).where(of_callers, records.c.at >= last)
    first = connection.scalar(unjudged)
    if first is None:
        return None
    began = datetime.fromtimestamp(first.timestamp() // seconds * seconds, UTC)
    # After a change of the length, windows still must not overlap.
    return max(began, last), began + timedelta(seconds=seconds)


def store(
    connection: Connection, ended: datetime, model: str, window: Sample, checks: list[Check]
) -> None:
    stored = {
        "rows": len(window.rows),
        "checks": [check._asdict() for check in checks],
        "deciles": deciles(window),
    }
    new = insert(windows).values(ended=ended, model=model, **stored)
    connection.execute(new.on_conflict_do_nothing())


def deciles(sample: Sample) -> list[list[float]]:
    """Returns the deciles of each feature, for people."""
    finite = [column[np.isfinite(column)] for column in sample.rows.T]
    return [np.quantile(column, DECILES).tolist() if len(column) else [] for column in finite]


def newest(connection: Connection, count: int) -> dict[str, list[Any]]:
    """Returns the last judged windows of each model in the last one, the newest first."""
    last = select(func.max(windows.c.ended)).scalar_subquery()
    models = connection.scalars(select(windows.c.model).where(windows.c.ended == last)).all()
    found = {}
    for model in models:
        own = select(windows).where(windows.c.model == model)
        found[model] = [*connection.execute(own.order_by(windows.c.ended.desc()).limit(count))]
    return found


def checks_of(window: Any) -> list[Check]:
    return [Check(**check) for check in window.checks]


def speaking_in(judged: list[Any]) -> set[str]:
    """Names the checks that speak in the newest of some windows, the newest first."""
    last, previous = [*[checks_of(window) for window in judged[:2]], []][:2]
    return speaking(last, previous)


def state_of(check: Check, speak: set[str]) -> int:
    if check.p_value is None:
        return TOO_FEW
    return SPEAKS if check.name in speak else QUIET
