"""Connects to PostgreSQL or an SQLite file, with a deadline for every statement."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Annotated, Any

import psycopg2
from fastapi import Depends, Request
from psycopg2.extensions import POLL_OK, POLL_READ, set_wait_callback
from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.orm import Session

from .settings import Settings


def connect(settings: Settings) -> Engine:
    """Creates the connection pool without opening a connection.

    Raises:
        ValueError: a part of the password would be taken for the host, and logged.
    """
    url = make_url(settings.database_url)
    if "@" in (url.host or ""):
        raise ValueError("escape the password of DATABASE_URL, or set DATABASE_PASSWORD instead")
    seconds = settings.database_deadline_seconds
    pool: dict[str, Any] = {"max_overflow": 0, "pool_timeout": seconds}
    if url.get_backend_name() == "sqlite":
        # With a single connection, threads queue for it in order. At SQLite's file lock there is no
        # queue, and an unlucky thread would time out.
        engine = create_engine(url, pool_size=1, connect_args={"timeout": seconds}, **pool)
        event.listen(engine, "connect", prepare_sqlite)
        event.listen(engine, "begin", begin_sqlite)
        return engine
    if password := settings.database_password.get_secret_value():
        url = url.set(password=password)
    # The server cancels slow statements and releases the locks of a client that is gone. The
    # client waits slightly longer, in case the server hangs.
    set_wait_callback(partial(wait, seconds + 0.5))
    milliseconds = round(seconds * 1000)
    bounds = {
        "statement_timeout": milliseconds,
        "idle_in_transaction_session_timeout": 2 * milliseconds,
    }
    return create_engine(
        url.set(drivername="postgresql+psycopg2"),
        pool_size=settings.database_connections,
        # The server may have restarted since a connection was opened.
        pool_pre_ping=True,
        connect_args={"options": " ".join(f"-c {name}={value}" for name, value in bounds.items())},
        **pool,
    )


def is_embedded(engine: Engine) -> bool:
    """Tells whether the database is an SQLite file."""
    return engine.dialect.name == "sqlite"


def wait(seconds: float, connection: Any) -> None:
    """Waits for PostgreSQL like psycopg2, but with a deadline: the server may be suspended.

    Raises:
        OperationalError: the deadline has passed.
    """
    deadline = monotonic() + seconds
    while (state := connection.poll()) != POLL_OK:
        poller = select.poll()
        poller.register(
            connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT
        )
        if not poller.poll(max(0.0, deadline - monotonic()) * 1000):
            raise psycopg2.OperationalError(f"no response within {seconds} seconds")


def prepare_sqlite(connection: Any, _: Any) -> None:
    """Leaves BEGIN to SQLAlchemy, lets readers run beside a writer, and enforces foreign keys."""
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def begin_sqlite(connection: Connection) -> None:
    """Takes the write lock before the first read of a transaction that writes.

    SQLite has no SELECT ... FOR UPDATE. With the lock taken this early, nobody else can write
    between the read and the write. Taken later, it fails if another process has written meanwhile.
    """
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Yields a session for reading."""
    with Session(engine) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Yields a session whose changes are committed at the end of the block, all or none."""
    engine = engine.execution_options(writes=True)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def engine_of(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


Database = Annotated[Engine, Depends(engine_of)]
