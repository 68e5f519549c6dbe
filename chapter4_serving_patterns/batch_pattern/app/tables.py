"""Defines the tables, and connects to PostgreSQL."""

import math

from sqlalchemy import (
    ARRAY,
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Engine,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    NullPool,
    SmallInteger,
    Table,
    Text,
    create_engine,
    exists,
    func,
    make_url,
    select,
)

from .schema import FEATURES, HIGHEST, LOWEST
from .settings import Settings

metadata = MetaData()


def number(name: str, *keys: ForeignKey) -> Column[int]:
    return Column(name, BigInteger, *keys, nullable=False, index=bool(keys))


def identity(name: str) -> Column[int]:
    return Column(name, BigInteger, Identity(), primary_key=True)


def now(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False, server_default=func.now())


# PostgreSQL refuses what the model cannot take, whoever inserts it. To PostgreSQL, NaN is above all
# numbers. All rows have the same size in COPY's binary format, because they have the same width.
ROW = f"""array_ndims("values") = 1 AND cardinality("values") = {FEATURES}
    AND array_position("values", NULL) IS NULL
    AND {LOWEST}::real <= ALL ("values") AND {HIGHEST}::real >= ALL ("values")"""
items = Table(
    "items",
    metadata,
    identity("item_id"),
    Column("values", ARRAY(REAL), CheckConstraint(ROW, "a_row_of_the_model"), nullable=False),
    now("created_at"),
)
# The primary key makes a second prediction by the same model impossible.
predictions = Table(
    "predictions",
    metadata,
    Column("item_id", BigInteger, primary_key=True),
    Column("model_version", Text, primary_key=True),
    Column("job_id", BigInteger, nullable=False, index=True),
    # The index of the most probable label.
    Column("label", SmallInteger, nullable=False),
    Column("probabilities", ARRAY(REAL), nullable=False),
    now("predicted_at"),
)
jobs = Table(
    "jobs",
    metadata,
    identity("job_id"),
    Column("model_version", Text, nullable=False),
    now("planned_at"),
    Column("finished_at", DateTime(timezone=True)),
    # How long all of it takes, as expected after the first chunk, and whether that is too long.
    Column("forecast_seconds", REAL),
    Column("misses_window", Boolean),
)
Index(
    "one_unfinished",
    jobs.c.model_version,
    unique=True,
    postgresql_where=jobs.c.finished_at.is_(None),
)
# A chunk is what is still to be predicted between two items: `waiting`, `done` or `failed`.
chunks = Table(
    "chunks",
    metadata,
    identity("chunk_id"),
    number("job_id", ForeignKey(jobs.c.job_id)),
    number("first_item_id"),
    number("last_item_id"),
    number("rows"),
    Column("state", Text, nullable=False, server_default="waiting"),
    Column("reason", Text),
)
attempts = Table(
    "attempts",
    metadata,
    identity("attempt_id"),
    number("chunk_id", ForeignKey(chunks.c.chunk_id)),
)


def unpredicted(model_version: str) -> ColumnElement[bool]:
    """Returns the condition that an item has no prediction by this model."""
    by_model = predictions.c.model_version == model_version
    of_item = predictions.c.item_id == items.c.item_id
    return ~exists(select(predictions.c.item_id).where(of_item, by_model).correlate(items))


def connect(settings: Settings) -> Engine:
    """Returns an engine whose connections are opened and closed with each use.

    Nobody calls often enough for a pool, whose connections may be stale.
    """
    url = make_url(settings.database_url)
    if password := settings.database_password.get_secret_value():
        url = url.set(password=password)
    # The shortest that libpq takes is 2 s.
    timeout = max(2, math.ceil(settings.database_deadline_seconds))
    return create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": timeout})
