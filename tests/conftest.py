"""Restores the default signal handling of a terminal, and switches telemetry off."""

import os
import signal

from tools.read.proxies import direct

# Read when a test imports MLflow or ONNX Runtime.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
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
