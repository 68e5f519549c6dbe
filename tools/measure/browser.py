"""Drives the Chromium of this machine, without the internet, as a person who uses a page does.

Nothing is downloaded: it is the browser that is installed, and an error names what to install.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Error,
    Page,
    Playwright,
    sync_playwright,
)

from tools.measure.server import wait_until

PROGRAMS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
WITHOUT_INTERNET = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
# A busy machine must not fail a test.
PATIENCE_SECONDS = 60.0
POLL_SECONDS = 0.02


class BrowserError(Exception):
    """There is no browser, or a page has errors."""


def find() -> str | None:
    """Returns the path of Chromium or Chrome, if there is one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def program() -> str:
    """Returns the path of Chromium or Chrome.

    Raises:
        BrowserError: there is none.
    """
    if path := find():
        return path
    raise BrowserError("there is no Chromium or Chrome on PATH: run apt install chromium")


def options(more: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the options that start the browser of this machine."""
    # Its sandbox does not work for root, as whom containers and CI run.
    unsafe = ["--no-sandbox"] if os.geteuid() == 0 else []
    return {"executable_path": program(), "args": [WITHOUT_INTERNET, *unsafe, *more]}


@contextmanager
def run_browser(playwright: Playwright | None = None) -> Iterator[Browser]:
    """Runs a browser that forgets everything at its end."""
    with running(playwright) as started:
        browser = started.chromium.launch(**options())
        yield browser
        browser.close()


@contextmanager
def run_profile(
    directory: Path,
    playwright: Playwright | None = None,
    *,
    arguments: Sequence[str] = (),
    device: str = "Pixel 7",
    **settings: Any,
) -> Iterator[BrowserContext]:
    """Runs a browser, as large as a device, that keeps what it knows in a directory."""
    with running(playwright) as started:
        context = started.chromium.launch_persistent_context(
            directory, **options(arguments), **screen_of(started, device), **settings
        )
        yield context
        # It may have been killed.
        with suppress(Error):
            context.close()


@contextmanager
def running(playwright: Playwright | None) -> Iterator[Playwright]:
    """Yields the given Playwright, or starts one: a thread can have only one."""
    if playwright:
        yield playwright
        return
    with sync_playwright() as started:
        yield started


def screen_of(playwright: Playwright, device: str) -> Mapping[str, Any]:
    """Returns size, scale and touch of a device that Playwright knows."""
    screen = playwright.devices[device]
    return {name: value for name, value in screen.items() if name != "default_browser_type"}


def kill(directory: Path) -> None:
    """Kills the browser with this profile, and all of its processes, as a loss of power does."""
    ours = f"--user-data-dir={directory}"
    found = [
        each for each in psutil.process_iter(["cmdline"]) if ours in (each.info["cmdline"] or [])
    ]
    found += [child for each in found for child in each.children(recursive=True)]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not any(map(is_alive, found)), "the browser to be dead", PATIENCE_SECONDS)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def poll(
    page: Page, script: str, until: Callable[[Any], bool] = bool, seconds: float = PATIENCE_SECONDS
) -> Any:
    """Evaluates a script again and again until its value is as it should be, and returns that.

    Playwright's own `wait_for_function` dies where a policy of the page forbids `eval`.

    Raises:
        TimeoutError: it did not become so.
    """
    deadline = time.monotonic() + seconds
    while not until(value := page.evaluate(script)):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {script}: {value!r}")
        time.sleep(POLL_SECONDS)
    return value


@contextmanager
def without_errors(page: Page, expected: Sequence[str] = ()) -> Iterator[None]:
    """Raises a BrowserError at the end of the block if the page had errors or wrote some.

    `expected` are parts of messages that may come, such as that a server is out of reach.
    """
    errors: list[str] = []

    def note(text: str) -> None:
        if not any(part in text for part in expected):
            errors.append(text)

    def of_console(message: ConsoleMessage) -> None:
        if message.type == "error":
            note(message.text)

    def of_page(error: Error) -> None:
        note(str(error))

    page.on("console", of_console)
    page.on("pageerror", of_page)
    yield
    page.remove_listener("console", of_console)
    page.remove_listener("pageerror", of_page)
    if errors:
        raise BrowserError("the page has errors: " + "; ".join(errors))
