"""Restores the default signal handling of a terminal for tests that run in the background."""

import os
import signal

from tools.read.proxies import direct

# MLflow reads it when a test imports it.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ |= direct(os.environ)


def pytest_configure() -> None:
    """Stops ignoring SIGINT and SIGHUP, with which tests stop programs.

    A shell ignores SIGINT for background jobs, nohup ignores SIGHUP, and child processes inherit
    this, so a program under test would not notice Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
