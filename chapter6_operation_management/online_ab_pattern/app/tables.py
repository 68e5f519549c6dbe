# Copied from chapter5_operations/prediction_log_pattern/app/tables.py
"""Defines the tables: the records by day, and how much of each segment they hold."""

from datetime import date, timedelta

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Date,
    DateTime,
    MetaData,
    Table,
    Text,
    cast,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

# By the day on which a record was stored: another clock cannot create or delete a partition.
records = Table(
    "records",
    metadata,
    Column("day", Date, primary_key=True),
    Column("segment", Text, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("id", Text, index=True),
    Column("at", DateTime(timezone=True), nullable=False, index=True),
    Column("body", JSONB, nullable=False),
    postgresql_partition_by="RANGE (day)",
)
# `size` is that of the segment when it was last looked at; `torn` counts lines that are no record.
shipped = Table(
    "shipped",
    metadata,
    Column("segment", Text, primary_key=True),
    Column("position", BigInteger, nullable=False, server_default="0"),
    Column("size", BigInteger, nullable=False, server_default="0"),
    Column("torn", BigInteger, nullable=False, server_default="0"),
)
# Predictions with their events, one row an `event_id`. `times` is above 1 if an ID came twice.
OUTCOMES = """CREATE OR REPLACE VIEW outcomes AS
SELECT prediction.id, prediction.at, prediction.body, event_id, event, value, event_at,
    count(*) OVER (PARTITION BY prediction.id, event_id) AS times
FROM records AS prediction LEFT JOIN (
    SELECT DISTINCT ON (id, body ->> 'event_id') id, at AS event_at,
        body ->> 'event_id' AS event_id, body ->> 'event' AS event, body ->> 'value' AS value
    FROM records WHERE kind = 'event' ORDER BY id, body ->> 'event_id', at, position
) AS first USING (id)
WHERE prediction.kind = 'prediction'"""


PARTITIONS = "SELECT relid::regclass::text FROM pg_partition_tree('records') WHERE isleaf"

today = cast(func.timezone("UTC", func.now()), Date)
# Arbitrary, but the same for every process that creates or deletes tables.
TABLES_LOCK = 20_230_701


def keep_days(connection: Connection, retention_days: int) -> None:
    """Creates what is missing, with a partition for tomorrow, and drops the days that are over."""
    with connection.begin():
        connection.execute(select(func.pg_advisory_xact_lock(TABLES_LOCK)))
        metadata.create_all(connection)
        connection.execute(text(OUTCOMES))
        day: date = connection.execute(select(today)).scalar_one()
        for first in (day, day + timedelta(days=1)):
            bounds = f"FROM ('{first}') TO ('{first + timedelta(days=1)}')"
            name = partition_of(first)
            create = f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF records FOR VALUES {bounds}"
            connection.execute(text(create))
        for name in connection.scalars(text(PARTITIONS)).all():
            if name < partition_of(day - timedelta(days=retention_days)):
                connection.execute(text(f"DROP TABLE {name}"))


def partition_of(day: date) -> str:
    return f"records_{day:%Y%m%d}"
