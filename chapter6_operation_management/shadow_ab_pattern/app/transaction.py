# Copied from chapter4_serving_patterns/batch_pattern/app/transaction.py
"""Gives every transaction a deadline, and one of few connections to PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import BoundedSemaphore

from sqlalchemy import Connection, Engine

from .deadline import within


def transactions(
    engine: Engine, most_at_once: int, seconds: float
) -> Callable[[], AbstractContextManager[Connection]]:
    """Returns a function that begins a transaction.

    It commits all changes at the end, or none. It raises a TimeoutError if no connection is free
    within the deadline, and a DBAPIError if PostgreSQL is down or takes longer than that.
    """
    slots = BoundedSemaphore(most_at_once)

    @contextmanager
    def transaction() -> Iterator[Connection]:
        if not slots.acquire(timeout=seconds):
            raise TimeoutError("no connection was free in time")
        try:
            with engine.connect() as connection, within(seconds, connection), connection.begin():
                yield connection
        finally:
            slots.release()

    return transaction
