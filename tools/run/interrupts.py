"""Makes a program clean up after the first SIGINT, SIGTERM or SIGHUP, whatever follows."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def interrupt_once() -> None:
    """Makes the first signal raise a KeyboardInterrupt, and the program ignore all others."""
    for number in SIGNALS:
        signal.signal(number, interrupt)


def interrupt(*_: Any) -> None:
    for number in SIGNALS:
        signal.signal(number, ignore)
    raise KeyboardInterrupt


def ignore(*_: Any) -> None:
    """Does nothing; unlike SIG_IGN it is not inherited by the programs that are started."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    before = {number: signal.signal(number, ignore) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
