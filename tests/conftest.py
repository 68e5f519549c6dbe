"""Gives the tests the signals of a terminal, also where they run in the background."""

import signal


def pytest_configure() -> None:
    """Stops ignoring signals that programs under test are to be stopped with.

    A shell starts what runs in the background with SIGINT ignored, nohup with SIGHUP, and both are
    inherited: a program that is tested for Ctrl-C would never notice it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
