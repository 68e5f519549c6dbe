"""Runs the browser of this machine, without the internet."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

PROGRAMS = (
    *("chromium", "chromium-browser", "google-chrome"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
WITHOUT_INTERNET = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
# A busy machine must not fail a test.
PATIENCE_MILLISECONDS = 60_000


def program() -> str | None:
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


# CI installs a browser, so there the tests fail without one.
needs_browser = pytest.mark.skipif(
    not program() and "CI" not in os.environ,
    reason="there is no browser: install Chromium or Chrome",
)


@contextmanager
def run_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=[WITHOUT_INTERNET])
        yield browser
        browser.close()
