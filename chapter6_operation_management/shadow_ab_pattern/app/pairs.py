"""Joins the records of both versions by their ID, and keeps which rule was there when."""

import json
from collections import Counter
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, DateTime, MetaData, Table, Text, func, select, text
from sqlalchemy.dialects.postgresql import insert

from .compare import Pairs
from .settings import Settings
from .tables import TABLES_LOCK

metadata = MetaData()
now = func.clock_timestamp()
rules = Table(
    "rules",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("seen", DateTime(timezone=True), nullable=False, server_default=now),
)
# The first record of the shadow's model. Another model of either version is another trial.
trials = Table(
    "trials",
    metadata,
    Column("live_model", Text, primary_key=True),
    Column("shadow_model", Text, primary_key=True),
    Column("began", DateTime(timezone=True), nullable=False),
)
NEWEST = text("""SELECT body ->> 'model' FROM records
WHERE kind IN ('prediction', 'refusal') AND body ->> 'arm' = :arm ORDER BY at DESC LIMIT 1""")
OF_BOTH = """kind <> 'dropped' AND NOT body ? 'test' AND (
    body ->> 'arm' = :live_arm AND body ->> 'model' = :live_model
    OR body ->> 'arm' = :shadow_arm AND body ->> 'model' = :shadow_model)"""
BEGAN = text(f"""SELECT greatest(min(at) FILTER (WHERE body ->> 'arm' = :live_arm),
    min(at) FILTER (WHERE body ->> 'arm' = :shadow_arm)) FROM records WHERE {OF_BOTH}""")  # noqa: S608
JOINED = text(f"""WITH written AS (
    SELECT id, at, body ->> 'label' AS label, CAST(body ->> 'ms' AS float8) AS ms,
        kind <> 'event' AND body ->> 'arm' = :live_arm AS of_live,
        kind <> 'event' AND body ->> 'arm' = :shadow_arm AS of_shadow,
        CASE WHEN kind = 'event' AND body ->> 'event' = 'label'
            THEN CAST(jsonb_build_array(body -> 'value') AS text) END AS truth
    FROM records WHERE {OF_BOTH} AND at >= CAST(:began AS timestamptz) - interval '1 minute'
    -- Otherwise PostgreSQL looks into the body again for each of the columns below.
    OFFSET 0
), asked AS (
    SELECT id, min(at) AS at,
        count(*) FILTER (WHERE of_live) AS live, count(*) FILTER (WHERE of_shadow) AS shadow,
        max(label) FILTER (WHERE of_live) AS live_label, max(ms) FILTER (WHERE of_live) AS live_ms,
        max(label) FILTER (WHERE of_shadow) AS shadow_label,
        max(ms) FILTER (WHERE of_shadow) AS shadow_ms, min(truth) AS truth
    FROM written GROUP BY id
), pair AS (
    SELECT * FROM asked
    WHERE live = 1 AND shadow = 1 AND live_label IS NOT NULL AND shadow_label IS NOT NULL
) SELECT summary.*, other.*, labels.* FROM (
    SELECT count(*) AS pairs, count(*) FILTER (WHERE live_label = shadow_label) AS agreeing,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY live_ms) AS live_p50_ms,
        percentile_disc(0.99) WITHIN GROUP (ORDER BY live_ms) AS live_p99_ms,
        percentile_disc(0.5) WITHIN GROUP (ORDER BY shadow_ms) AS shadow_p50_ms,
        percentile_disc(0.99) WITHIN GROUP (ORDER BY shadow_ms) AS shadow_p99_ms,
        count(*) FILTER (WHERE live_label = truth AND shadow_label <> truth) AS only_live_right,
        count(*) FILTER (WHERE live_label <> truth AND shadow_label = truth) AS only_shadow_right
    FROM pair
) AS summary, (
    SELECT count(*) FILTER (WHERE live > 1 OR shadow > 1) AS repeated,
        count(*) FILTER (WHERE live = 1 AND shadow = 1 AND live_label IS NULL
            AND shadow_label IS NULL) AS refused,
        count(*) FILTER (WHERE live = 1 AND shadow = 1 AND live_label IS NULL
            AND shadow_label IS NOT NULL) AS errors_of_live,
        count(*) FILTER (WHERE live = 1 AND shadow = 1 AND live_label IS NOT NULL
            AND shadow_label IS NULL) AS errors_of_shadow,
        count(*) FILTER (WHERE live = 1 AND shadow = 0 AND is_settled) AS only_live,
        count(*) FILTER (WHERE live = 0 AND shadow = 1 AND is_settled) AS only_shadow
    FROM (SELECT *, at BETWEEN :began AND clock_timestamp() - make_interval(secs => :settle_seconds)
        AS is_settled FROM asked) AS settled
) AS other, (
    SELECT json_agg(json_build_array(live_label, shadow_label, times)) AS labels FROM (
        SELECT live_label, shadow_label, count(*) AS times FROM pair GROUP BY 1, 2
    ) AS counted
) AS labels""")  # noqa: S608


def keep_rule(connection: Connection, digest: str) -> datetime:
    """Stores when this rule was first seen, unless that is stored already, and returns it."""
    connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))
    metadata.create_all(connection)
    connection.execute(insert(rules).values(digest=digest).on_conflict_do_nothing())
    seen: datetime = connection.execute(
        select(rules.c.seen).where(rules.c.digest == digest)
    ).scalar_one()
    return seen


def find_trial(connection: Connection, settings: Settings) -> dict[str, Any] | None:
    """Returns the newest models of both versions, and when the comparison of these two began."""
    arms = {"live_arm": settings.live_arm, "shadow_arm": settings.shadow_arm}
    live, shadow = (connection.scalar(NEWEST, {"arm": arm}) for arm in arms.values())
    if live is None or shadow is None:
        return None
    models = {"live_model": live, "shadow_model": shadow}
    known = select(trials.c.began).filter_by(**models)
    began = connection.scalar(known)
    if began is None:
        if (began := connection.scalar(BEGAN, arms | models)) is None:
            return None
        connection.execute(insert(trials).values(**models, began=began).on_conflict_do_nothing())
    return arms | models | {"began": began}


def join(connection: Connection, trial: dict[str, Any], settle_seconds: float) -> Pairs:
    """Counts the pairs of a trial, and what is none."""
    # PostgreSQL expects a handful of rows, because it knows nothing of what is in the bodies.
    for setting in ("jit = off", "enable_sort = off", "work_mem = '64MB'"):
        connection.execute(text(f"SET LOCAL {setting}"))
    row = connection.execute(JOINED, trial | {"settle_seconds": settle_seconds}).one()._asdict()
    rows: Counter[tuple[str, str]] = Counter()
    for live, shadow, times in row.pop("labels") or []:
        for both in zip(json.loads(live), json.loads(shadow), strict=True):
            rows[both] += times
    return Pairs(**row, labels=[(*both, times) for both, times in sorted(rows.items())])
