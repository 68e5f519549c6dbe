"""Restores the default signal handling of a terminal, and keeps ONNX Runtime from calling home."""

import os
import signal

# Before any test imports it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def pytest_configure() -> None:
    """Stops ignoring SIGINT and SIGHUP, with which tests stop programs.

    A shell ignores SIGINT for background jobs, nohup ignores SIGHUP, and child processes inherit
    this, so a program under test would not notice Ctrl-C.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
