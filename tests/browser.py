"""Tells whether tests can run a browser; `tools.measure.browser` runs it."""

import os

import pytest

from tools.measure.browser import PATIENCE_SECONDS, find, run_browser

__all__ = ["PATIENCE_MILLISECONDS", "needs_browser", "run_browser"]

PATIENCE_MILLISECONDS = 1_000 * PATIENCE_SECONDS

# CI installs a browser, so there the tests fail without one.
needs_browser = pytest.mark.skipif(
    not find() and "CI" not in os.environ,
    reason="there is no browser: install Chromium or Chrome",
)
