"""Keeps when each experiment began, and whether and why it was stopped."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    Column,
    Connection,
    DateTime,
    Identity,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from .tables import TABLES_LOCK

metadata = MetaData()
now = func.clock_timestamp()
# A digest may come again: what was run before is never merged with what runs now.
runs = Table(
    "runs",
    metadata,
    Column("number", Integer, Identity(), primary_key=True),
    Column("digest", Text, nullable=False),
    Column("began", DateTime(timezone=True), nullable=False, server_default=now),
    Column("stopped", DateTime(timezone=True)),
    Column("reason", Text),
)


class Run(NamedTuple):
    """One experiment, from when it was first seen."""

    number: int
    digest: str
    began: datetime
    stopped: datetime | None
    reason: str | None


def last(connection: Connection) -> Run | None:
    row = connection.execute(select(runs).order_by(runs.c.number.desc()).limit(1)).first()
    return Run(*row) if row else None


def begin(connection: Connection, digest: str) -> Run:
    """Returns the run of an experiment; one that is written differently begins another run."""
    if connection.scalar(text("SELECT to_regclass('runs')")):
        run = last(connection)
        if run and run.digest == digest:
            return run
    connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))
    metadata.create_all(connection)
    run = last(connection)
    if run and run.digest == digest:
        return run
    return Run(*connection.execute(insert(runs).values(digest=digest).returning(runs)).one())


def stop(connection: Connection, run: Run, reason: str) -> Run:
    own = update(runs).where(runs.c.number == run.number)
    return Run(*connection.execute(own.values(stopped=now, reason=reason).returning(runs)).one())
