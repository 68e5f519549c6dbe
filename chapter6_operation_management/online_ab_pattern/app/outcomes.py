"""Joins events with predictions, and counts users, successes and failures by version."""

from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection, text

from .experiment import Experiment
from .runs import Run

Pair = tuple[int, int]
NONE = (0, 0)
# A failure that begins after a long time without one must not be lost among what went well.
RECENT_SECONDS = 30.0


class Counts(BaseModel):
    """What the log says of one run; each pair is (old version, new version)."""

    # Who has had answers of one version only.
    users: Pair = NONE
    # Who has had answers of both, and counts nowhere else.
    users_of_both: int = 0
    # Of those whose time for the event is over, all, and the first ones up to the planned size.
    watched: Pair = NONE
    watched_successes: Pair = NONE
    judged: Pair = NONE
    judged_successes: Pair = NONE
    # Of everybody, inside the experiment or not; a failure is a 5xx.
    requests: Pair = NONE
    failures: Pair = NONE
    recent_requests: Pair = NONE
    recent_failures: Pair = NONE
    models: tuple[list[str], list[str]] = ([], [])
    # Each event is counted in one of these. It is refused if its user or version is not that of the
    # prediction, and may belong to a prediction of an earlier run.
    events_joined: int = 0
    events_waiting: int = 0
    events_refused: int = 0
    events_twice: int = 0
    events_of_earlier: int = 0


JOINED = """WITH asked AS (
    SELECT id, at, body ->> 'user' AS who, body ->> 'arm' AS arm FROM records
    WHERE kind = 'prediction' AND at >= :began AND body ->> 'user' IS NOT NULL
        AND body ->> 'arm' IN (:a, :b)
), own AS (
    SELECT DISTINCT id, who, arm FROM asked
), told AS (
    SELECT id, body ->> 'user' AS who, body ->> 'arm' AS arm, min(at) AS at, count(*) AS times
    FROM records WHERE kind = 'event' AND at >= :began AND body ->> 'event' = :event
    GROUP BY 1, 2, 3, body ->> 'event_id'
), users AS (
    SELECT who, min(at) AS first, min(arm) AS arm, min(arm) <> max(arm) AS of_both
    FROM asked GROUP BY who
)"""
USERS = text(f"""{JOINED}, done AS (
    SELECT who, min(told.at) AS at FROM told JOIN own USING (id, who, arm) GROUP BY who
), settled AS (
    SELECT arm, coalesce(done.at <= first + make_interval(secs => :within), false) AS succeeded,
        row_number() OVER (PARTITION BY arm ORDER BY first, who) AS place
    FROM users LEFT JOIN done USING (who) WHERE NOT of_both
        AND first < clock_timestamp() - make_interval(secs => :within + :settle_seconds)
), counted AS (
    SELECT arm, count(*) FILTER (WHERE NOT of_both) AS users,
        count(*) FILTER (WHERE of_both) AS users_of_both
    FROM users GROUP BY arm
) SELECT arm, users, users_of_both, count(place) AS watched,
    count(place) FILTER (WHERE succeeded) AS watched_successes,
    count(place) FILTER (WHERE place <= planned) AS judged,
    count(place) FILTER (WHERE place <= planned AND succeeded) AS judged_successes
FROM counted JOIN (VALUES (:a, :planned_a), (:b, :planned_b)) AS plan (arm, planned) USING (arm)
LEFT JOIN settled USING (arm) GROUP BY 1, 2, 3""")  # noqa: S608
EVENTS = text(f"""{JOINED} SELECT count(own.id) AS events_joined,
    count(*) FILTER (WHERE own.id IS NULL AND theirs.at IS NULL) AS events_waiting,
    count(*) FILTER (WHERE own.id IS NULL AND theirs.at >= :began) AS events_refused,
    count(*) FILTER (WHERE own.id IS NULL AND theirs.at < :began) AS events_of_earlier,
    coalesce(sum(times), 0) - count(*) AS events_twice
FROM told LEFT JOIN own USING (id, who, arm) LEFT JOIN LATERAL (
    SELECT max(at) AS at FROM records
    WHERE own.id IS NULL AND kind = 'prediction' AND records.id = told.id
) AS theirs ON true""")  # noqa: S608
REQUESTS = text("""SELECT body ->> 'arm' AS arm, count(*) AS requests,
    count(*) FILTER (WHERE CAST(body ->> 'status' AS int) >= 500) AS failures,
    count(*) FILTER (WHERE is_recent) AS recent_requests,
    count(*) FILTER (WHERE is_recent AND CAST(body ->> 'status' AS int) >= 500) AS recent_failures,
    array_agg(DISTINCT body ->> 'model') AS models
FROM (SELECT body, at > clock_timestamp() - make_interval(secs => :recent) AS is_recent
    FROM records WHERE kind IN ('prediction', 'refusal') AND at >= :began) AS asked
GROUP BY 1""")


def count(
    connection: Connection, run: Run, experiment: Experiment, settle_seconds: float
) -> Counts:
    """Counts what has been logged since the run began."""
    arms = (experiment.arms.a, experiment.arms.b)
    given = {
        **dict(zip(("a", "b"), arms, strict=True)),
        **dict(zip(("planned_a", "planned_b"), experiment.planned, strict=True)),
        "began": run.began,
        "event": experiment.event,
        "within": experiment.event_within_seconds,
        "settle_seconds": settle_seconds,
        "recent": RECENT_SECONDS,
    }
    # PostgreSQL expects a handful of rows, because it knows nothing of what is in the bodies.
    for setting in ("jit = off", "enable_nestloop = off", "enable_sort = off", "work_mem = '64MB'"):
        connection.execute(text(f"SET LOCAL {setting}"))
    by_arm: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    for query in (USERS, REQUESTS):
        for row in connection.execute(query, given):
            by_arm.setdefault(row.arm, {}).update(row._asdict())
    found: dict[str, Any] = connection.execute(EVENTS, given).one()._asdict()
    for name, field in Counts.model_fields.items():
        if isinstance(field.default, tuple):
            pair = zip(arms, field.default, strict=True)
            found[name] = tuple(by_arm[arm].get(name, none) for arm, none in pair)
    of_both = sum(by_arm[arm].get("users_of_both", 0) for arm in arms)
    return Counts.model_validate(found | {"users_of_both": of_both})
