"""Connects to PostgreSQL, with a deadline for every statement and every wait."""

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from sqlalchemy import Connection, Engine, NullPool, create_engine, make_url

from .settings import Settings


def connect(settings: Settings) -> Engine:
    """Returns an engine whose connections are opened and closed with each use."""
    url = make_url(settings.database_url)
    if password := settings.database_password.get_secret_value():
        url = url.set(password=password)
    seconds = settings.database_deadline_seconds
    bounds = {
        # The shortest that libpq takes is 2 s.
        "connect_timeout": max(2, math.ceil(seconds)),
        "options": f"-c statement_timeout={math.ceil(seconds * 1000)}",
    }
    return create_engine(url, poolclass=NullPool, connect_args=bounds)


@contextmanager
def within(seconds: float, connection: Connection) -> Iterator[None]:
    """Cuts the connection when the time is over, because psycopg2 waits for ever.

    PostgreSQL cannot keep the deadline itself while it is suspended.
    """
    descriptor = connection.connection.driver_connection.fileno()  # type: ignore[union-attr]
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        timer = Timer(seconds, copy.shutdown, [socket.SHUT_RDWR])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
