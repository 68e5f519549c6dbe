# Copied from chapter4_serving_patterns/batch_pattern/app/deadline.py
"""Ends the wait for PostgreSQL at a deadline, even if it is suspended."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from sqlalchemy import Connection


@contextmanager
def within(seconds: float, connection: Connection) -> Iterator[None]:
    """Cuts the connection when the time is over, because psycopg2 waits for ever.

    Its own way to wait with a deadline excludes COPY.
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
