"""Keeps pictures in PostgreSQL, each with a version that changes whenever the picture does."""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Engine,
    Executable,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    literal_column,
    make_url,
    select,
)
from sqlalchemy import (
    Sequence as Numbers,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from .deadline import within
from .schema import PICTURE_ID
from .settings import Settings

metadata = MetaData()
# One sequence for all pictures: a picture that is deleted and stored again gets a new version.
numbers = Numbers("picture_versions", metadata=metadata)
pictures = Table(
    "pictures",
    metadata,
    Column("picture_id", Text, CheckConstraint(f"picture_id ~ '{PICTURE_ID}'"), primary_key=True),
    Column("version", BigInteger, nullable=False, server_default=numbers.next_value()),
    Column("image", LargeBinary, CheckConstraint("octet_length(image) > 0"), nullable=False),
)
# In the database, so that it holds for whatever program changes a picture.
RAISE_VERSION = """
CREATE FUNCTION raise_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := nextval('picture_versions');
    RETURN NEW;
END $$;
CREATE TRIGGER raise_version BEFORE UPDATE ON pictures FOR EACH ROW
    WHEN (OLD.image IS DISTINCT FROM NEW.image) EXECUTE FUNCTION raise_version();
"""
event.listen(pictures, "after_create", DDL(RAISE_VERSION))  # type: ignore[no-untyped-call]


class UnknownPicturesError(Exception):
    """The store has no pictures with some IDs."""


def connect(settings: Settings, connections: int) -> Engine:
    """Returns an engine that keeps connections; what it executes is committed at once."""
    url = make_url(settings.database_url)
    if password := settings.database_password.get_secret_value():
        url = url.set(password=password)
    # The shortest that libpq takes is 2 s.
    timeout = max(2, math.ceil(settings.database_deadline_seconds))
    return create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        # A query is one round trip, without BEGIN and ROLLBACK.
        isolation_level="AUTOCOMMIT",
        pool_reset_on_return=None,
        connect_args={"connect_timeout": timeout},
    )


class Store:
    """Queries PostgreSQL in threads, one for each connection."""

    def __init__(self, settings: Settings) -> None:
        self.deadline_seconds = settings.database_deadline_seconds
        self.engine = connect(settings, settings.database_connections)
        self.threads = ThreadPoolExecutor(settings.database_connections)

    async def versions(self, ids: list[str]) -> dict[str, int]:
        """Returns the current version of each picture, in one query.

        Raises:
            UnknownPicturesError: there is no such picture.
        """
        columns = pictures.c.picture_id, pictures.c.version
        return await self.ask_for(ids, select(*columns).where(pictures.c.picture_id.in_(ids)))

    async def pictures(self, ids: list[str]) -> dict[str, bytes]:
        """Returns each picture, in one query.

        Raises:
            UnknownPicturesError: there is no such picture.
        """
        columns = pictures.c.picture_id, pictures.c.image
        return await self.ask_for(ids, select(*columns).where(pictures.c.picture_id.in_(ids)))

    async def ask_for(self, ids: list[str], query: Executable) -> dict[str, Any]:
        found = dict(await self.ask(query))
        if unknown := [name for name in dict.fromkeys(ids) if name not in found]:
            raise UnknownPicturesError(f"unknown pictures: {', '.join(unknown)}")
        return found

    async def put(self, picture_id: str, image: bytes) -> tuple[int, bool]:
        """Stores a picture, and returns its version and whether the ID is new."""
        new = insert(pictures).values(picture_id=picture_id, image=image)
        stored = new.on_conflict_do_update(
            index_elements=[pictures.c.picture_id], set_={"image": new.excluded.image}
        )
        # A row that was inserted has not been locked or deleted by any transaction yet.
        is_new = literal_column("xmax = 0", Boolean).label("is_new")
        [row] = await self.ask(stored.returning(pictures.c.version, is_new))
        return row.version, row.is_new

    async def check(self) -> None:
        """Raises an error unless PostgreSQL answers and has the table."""
        await self.ask(select(pictures.c.picture_id).limit(1))

    async def ask(self, query: Executable) -> Sequence[Any]:
        """Returns the rows of a query.

        Raises:
            TimeoutError: PostgreSQL or a free connection took too long.
            DBAPIError: PostgreSQL is down, or has not got the table.
        """
        async with asyncio.timeout(self.deadline_seconds):
            return await asyncio.get_running_loop().run_in_executor(
                self.threads, self.execute, query
            )

    def execute(self, query: Executable) -> Sequence[Any]:
        try:
            return self.execute_once(query)
        except DBAPIError as error:
            # PostgreSQL has restarted since, so all connections are stale.
            if not error.connection_invalidated:
                raise
            return self.execute_once(query)

    def execute_once(self, query: Executable) -> Sequence[Any]:
        with self.engine.connect() as connection, within(self.deadline_seconds, connection):
            return connection.execute(query).all()

    def close(self) -> None:
        # Threads that wait for PostgreSQL end at their deadline.
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.engine.dispose()
