"""Cuts the items without a prediction into chunks, and gives each to one process at a time."""

from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Row,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    select,
    text,
    update,
)

from .tables import attempts, chunks, items, jobs, predictions, unpredicted

# Arbitrary, but the same for every process that plans.
PLAN_LOCK = 20_230_601

tried = (
    select(func.count())
    .where(attempts.c.chunk_id == chunks.c.chunk_id)
    .correlate(chunks)
    .scalar_subquery()
)


def version_of(metadata: dict[str, Any]) -> str:
    """Names a model in the tables: another file is another model, whatever its version says."""
    return f"{metadata['version']}-{metadata['sha256'][:12]}"


class Chunk(NamedTuple):
    """A range of items, locked by the transaction that has claimed it."""

    chunk_id: int
    job_id: int
    first_item_id: int
    last_item_id: int
    rows: int
    tried: int


def plan(connection: Connection, model_version: str, chunk_rows: int) -> int | None:
    """Returns the unfinished job of a model, or a new one; None if every item is predicted."""
    with connection.begin():
        connection.execute(select(func.pg_advisory_xact_lock(PLAN_LOCK)))
        of_model = jobs.c.model_version == model_version
        unfinished = select(jobs.c.job_id).where(of_model, jobs.c.finished_at.is_(None))
        if job_id := connection.scalar(unfinished):
            return int(job_id)
        missing = unpredicted(model_version)
        if not connection.scalar(select(exists(select(items.c.item_id).where(missing)))):
            return None
        new = insert(jobs).values(model_version=model_version).returning(jobs.c.job_id)
        job_id = connection.execute(new).scalar_one()
        position = func.row_number().over(order_by=items.c.item_id) - 1
        numbered = select(items.c.item_id, (position // chunk_rows).label("chunk")).where(missing)
        ids = numbered.subquery()
        ranges = select(
            literal(job_id),
            func.min(ids.c.item_id),
            func.max(ids.c.item_id),
            func.count(),
        ).group_by(ids.c.chunk)
        columns = ["job_id", "first_item_id", "last_item_id", "rows"]
        connection.execute(insert(chunks).from_select(columns, ranges.order_by(ids.c.chunk)))
        return int(job_id)


def claim(
    connection: Connection, notes: Connection, job_id: int, max_attempts: int
) -> Chunk | None:
    """Locks a waiting chunk until the end of the transaction; None if there is none to lock.

    Chunks that were tried least come first, so a chunk that kills its processes comes last. The
    attempt is written by `notes`, another connection: what kills this process must not undo it.
    """
    wanted = select(*(chunks.c[name] for name in Chunk._fields[:-1]), tried.label("tried"))
    waiting = wanted.where(chunks.c.job_id == job_id, chunks.c.state == "waiting")
    first = waiting.order_by("tried", chunks.c.chunk_id).limit(1)
    # The foreign key of an attempt takes a KEY SHARE lock, which this one allows.
    locked = first.with_for_update(skip_locked=True, key_share=True, of=chunks)
    while row := connection.execute(locked).first():
        chunk = Chunk(**row._mapping)
        if chunk.tried < max_attempts:
            notes.execute(insert(attempts).values(chunk_id=chunk.chunk_id))
            return chunk
        fail(connection, chunk, f"given up: {chunk.tried} attempts have killed their process")
    return None


def finish(connection: Connection, chunk: Chunk) -> None:
    """Marks a chunk as done, in the transaction that stores its predictions."""
    own = update(chunks).where(chunks.c.chunk_id == chunk.chunk_id)
    connection.execute(own.values(state="done", reason=None))


def give_up(
    connection: Connection, chunk: Chunk, reason: str, retry: str, max_attempts: int
) -> None:
    """Decides what happens to a chunk that has failed, after its transaction was undone."""
    with connection.begin():
        if retry == "next" or chunk.tried + 1 >= max_attempts:
            fail(connection, chunk, reason)
        elif retry == "all":
            # Waits for the chunks of other processes, which get no new one meanwhile.
            own = update(chunks).where(chunks.c.job_id == chunk.job_id, chunks.c.state != "failed")
            connection.execute(own.values(state="waiting", reason=None))
            of_job = predictions.c.job_id == chunk.job_id
            connection.execute(delete(predictions).where(of_job))


def fail(connection: Connection, chunk: Chunk, reason: str) -> None:
    waiting = (chunks.c.chunk_id == chunk.chunk_id) & (chunks.c.state == "waiting")
    connection.execute(update(chunks).where(waiting).values(state="failed", reason=reason))


def end(connection: Connection, job_id: int) -> bool:
    """Ends a job none of whose chunks is waiting; returns whether it has ended."""
    is_waiting = (chunks.c.job_id == job_id) & (chunks.c.state == "waiting")
    waiting = exists(select(chunks.c.chunk_id).where(is_waiting))
    unfinished = (jobs.c.job_id == job_id) & jobs.c.finished_at.is_(None) & ~waiting
    with connection.begin():
        connection.execute(update(jobs).where(unfinished).values(finished_at=func.now()))
        is_over = select(jobs.c.finished_at.is_not(None)).where(jobs.c.job_id == job_id)
        return bool(connection.scalar(is_over))


def forecast(
    connection: Connection, job_id: int, row_seconds: float, window_seconds: float
) -> Row[Any] | None:
    """Stores how long a job will take in all, after its first chunk; None after any other."""
    named = literal_column("pg_stat_activity.application_name") == f"job {job_id}"
    workers = select(func.count()).select_from(text("pg_stat_activity")).where(named)
    waiting = chunks.c.state == "waiting"
    rest = select(func.coalesce(func.sum(chunks.c.rows), 0)).where(
        chunks.c.job_id == job_id, waiting
    )
    passed = func.extract("epoch", func.now() - jobs.c.planned_at)
    expected = passed + row_seconds * rest.scalar_subquery() / func.greatest(
        workers.scalar_subquery(), 1
    )
    first = update(jobs).where(jobs.c.job_id == job_id, jobs.c.forecast_seconds.is_(None))
    stored = first.values(forecast_seconds=expected, misses_window=expected > window_seconds)
    with connection.begin():
        return connection.execute(
            stored.returning(jobs.c.forecast_seconds, jobs.c.misses_window)
        ).first()


def states(connection: Connection, job_id: int | None = None, last: int = 20) -> list[Row[Any]]:
    """Returns the newest jobs, or one, with the number of their chunks and rows by state."""
    rows = func.coalesce(func.sum(chunks.c.rows), 0)
    is_of = {name: chunks.c.state == name for name in ("waiting", "done", "failed")}
    tries = (
        select(func.count())
        .select_from(attempts.join(chunks))
        .where(chunks.c.job_id == jobs.c.job_id)
    )
    found = (
        select(
            *jobs.c,
            func.count().label("chunks"),
            *(func.count().filter(state).label(name) for name, state in is_of.items()),
            tries.correlate(jobs).scalar_subquery().label("attempts"),
            rows.label("rows"),
            func.coalesce(func.sum(chunks.c.rows).filter(~is_of["done"]), 0).label("missing"),
            func.max(chunks.c.reason).label("reason"),
        )
        .join(chunks, chunks.c.job_id == jobs.c.job_id)
        .group_by(jobs.c.job_id)
        .order_by(jobs.c.job_id.desc())
        .limit(last)
    )
    return [*connection.execute(found if job_id is None else found.where(jobs.c.job_id == job_id))]
