"""Reads samples from the log, and stores the first predictions of each model as its baseline."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import Connection, text
from sqlalchemy.dialects.postgresql import insert

from .judge import MIN_ROWS, Sample
from .observed import baselines
from .settings import Settings

EVER = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))
OF_CALLERS = """FROM records WHERE kind = 'prediction' AND NOT body ? 'test'
    AND body ->> 'model' = :model AND at >= :began AND at < :ended"""
FIRST = text(f"SELECT at, body {OF_CALLERS} ORDER BY at, position LIMIT :count")
LAST = text(f"SELECT at, body {OF_CALLERS} ORDER BY at DESC, position DESC LIMIT :count")
# An event that came twice counts once. The label of one of many rows belongs to none of them.
OUTCOMES = text("""SELECT count(*) FILTER (WHERE value = label) AS right,
    count(*) FILTER (WHERE value <> label) AS wrong FROM (
    SELECT DISTINCT ON (event.id, event.body ->> 'event_id')
        event.body ->> 'value' AS value, prediction.body -> 'label' ->> 0 AS label
    FROM records AS event JOIN records AS prediction USING (id)
    WHERE event.kind = 'event' AND event.body ->> 'event' = 'label'
        AND event.at >= :event_began AND event.at < :event_ended
        AND prediction.kind = 'prediction' AND prediction.body ->> 'model' = :model
        AND prediction.at >= :began AND prediction.at < :ended
        AND jsonb_array_length(prediction.body -> 'label') = 1
    ORDER BY event.id, event.body ->> 'event_id', event.at) AS first""")
Span = tuple[datetime, datetime]


def records_of(connection: Connection, model: str, span: Span, count: int | None = None) -> Any:
    """Returns the predictions of a model in their order, at most `count`."""
    began, ended = span
    bounds = {"model": model, "began": began, "ended": ended, "count": count}
    return connection.execute(FIRST, bounds).all()


def sample_of(connection: Connection, model: str, records: Any, made: Span, told: Span) -> Sample:
    """Returns records as a sample, with the outcomes of predictions made then and told then."""
    bodies = [record.body for record in records]
    bounds = {"began": made[0], "ended": made[1], "event_began": told[0], "event_ended": told[1]}
    outcomes = connection.execute(OUTCOMES, {"model": model, **bounds}).one()
    # A number that is not finite is null in JSON, and NaN here.
    rows = [row for body in bodies for row in body["data"]]
    return Sample(
        np.array(rows, np.float64),
        [label for body in bodies for label in body["label"]],
        [is_outlier for body in bodies for is_outlier in body["is_outlier"]],
        *outcomes,
    )


def window_of(connection: Connection, model: str, span: Span) -> Sample:
    """Returns the predictions of a window, and the outcomes that have come in it."""
    records = records_of(connection, model, span)
    return sample_of(connection, model, records, EVER, span)


def find(connection: Connection, model: str) -> tuple[datetime, Sample] | None:
    """Returns the baseline of a model and its end."""
    row = connection.execute(baselines.select().where(baselines.c.model == model)).one_or_none()
    if row is None:
        return None
    stored = row.sample | {"rows": np.array(row.sample["rows"], np.float64)}
    return row.ended, Sample(**stored)


def take_first(
    connection: Connection, model: str, watermark: datetime, settings: Settings
) -> tuple[datetime, Sample] | None:
    """Stores the first predictions of a model as its baseline as soon as their outcomes are due."""
    due = watermark - timedelta(seconds=settings.baseline_wait_seconds)
    records = records_of(connection, model, (EVER[0], due), settings.baseline_rows)
    if sum(len(record.body["data"]) for record in records) < settings.baseline_rows:
        return None
    return store(connection, model, records)


def take_last(connection: Connection, model: str, settings: Settings) -> int:
    """Stores the newest predictions instead, and returns the number of rows; 0 if too few."""
    bounds = {"model": model, "began": EVER[0], "ended": EVER[1], "count": settings.baseline_rows}
    records = connection.execute(LAST, bounds).all()[::-1]
    rows = sum(len(record.body["data"]) for record in records)
    if rows < MIN_ROWS:
        return 0
    store(connection, model, records)
    return rows


def store(connection: Connection, model: str, records: Any) -> tuple[datetime, Sample]:
    span = records[0].at, records[-1].at + timedelta(microseconds=1)
    sample = sample_of(connection, model, records, span, EVER)
    stored = sample._asdict() | {"rows": sample.rows.tolist()}
    values = {"ended": span[1], "sample": stored}
    new = insert(baselines).values(model=model, **values)
    connection.execute(new.on_conflict_do_update(index_elements=["model"], set_=values))
    return span[1], sample
