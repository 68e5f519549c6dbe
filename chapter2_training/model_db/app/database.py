"""Connects to the database, PostgreSQL or a file of SQLite, and keeps every statement bounded."""

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
    """Returns a pool of connections, none of which is open yet."""
    url = make_url(settings.database_url)
    seconds = settings.database_deadline_seconds
    pool: dict[str, Any] = {"max_overflow": 0, "pool_timeout": seconds}
    if url.get_backend_name() == "sqlite":
        # One connection, at which threads take turns in the order in which they came. At the lock
        # of the file they would as chance has it, and an unlucky one be refused in the end.
        engine = create_engine(url, pool_size=1, connect_args={"timeout": seconds}, **pool)
        event.listen(engine, "connect", prepare_sqlite)
        event.listen(engine, "begin", begin_sqlite)
        return engine
    if password := settings.database_password.get_secret_value():
        url = url.set(password=password)
    # The server gives a statement up, and takes back the locks of a client that is gone. The client
    # waits a little longer, for the case that the server does not even do that.
    set_wait_callback(partial(wait, seconds + 0.5))
    milliseconds = round(seconds * 1000)
    bounds = {
        "statement_timeout": milliseconds,
        "idle_in_transaction_session_timeout": 2 * milliseconds,
    }
    return create_engine(
        url.set(drivername="postgresql+psycopg2"),
        pool_size=settings.database_connections,
        # A connection may be one to a server that has since been restarted.
        pool_pre_ping=True,
        connect_args={"options": " ".join(f"-c {name}={value}" for name, value in bounds.items())},
        **pool,
    )


def is_embedded(engine: Engine) -> bool:
    """Tells whether the database is a file of this process."""
    return engine.dialect.name == "sqlite"


def wait(seconds: float, connection: Any) -> None:
    """Waits for PostgreSQL as psycopg2 would, but not for ever: the server may be suspended.

    Raises:
        OperationalError: connecting, or a statement, has taken longer than these seconds.
    """
    deadline = monotonic() + seconds
    while (state := connection.poll()) != POLL_OK:
        poller = select.poll()
        poller.register(
            connection.fileno(), select.POLLIN if state == POLL_READ else select.POLLOUT
        )
        if not poller.poll(max(0.0, deadline - monotonic()) * 1000):
            raise psycopg2.OperationalError(f"no answer within {seconds} seconds")


def prepare_sqlite(connection: Any, _: Any) -> None:
    """Lets SQLAlchemy begin transactions, readers go on beside writers, and references hold."""
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def begin_sqlite(connection: Connection) -> None:
    """Takes the lock before the first read of a transaction that writes.

    SQLite has no SELECT ... FOR UPDATE. With the lock taken so early nobody writes between what is
    read and what is written; taken later, it is refused if another process has written meanwhile.
    """
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Gives a session to read with."""
    with Session(engine) as session:
        yield session


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Gives a session whose changes are stored, all of them or none, once the block has ended."""
    engine = engine.execution_options(writes=True)
    with Session(engine, expire_on_commit=False) as session, session.begin():
        yield session


def engine_of(request: Request) -> Engine:
    """Returns the pool of connections that the lifespan has made."""
    engine: Engine = request.app.state.engine
    return engine


Database = Annotated[Engine, Depends(engine_of)]
