"""The browser that tests and measurements use is the one of this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, Playwright, sync_playwright

from tests.browser import needs_browser
from tools.measure import browser
from tools.measure.browser import BrowserError, kill, poll, run_browser, run_profile, without_errors

PAGE = "<p id='a'>1</p>"
# On the disk, before the promise is kept.
REMEMBER = """() => new Promise((resolve, reject) => {
  const opening = indexedDB.open("a", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("b");
  opening.onsuccess = () => {
    const change = opening.result.transaction("b", "readwrite", { durability: "strict" });
    change.objectStore("b").put("kept", "c");
    change.oncomplete = () => resolve();
  };
  opening.onerror = reject;
})"""
REMEMBERED = """() => new Promise((resolve, reject) => {
  const opening = indexedDB.open("a", 1);
  opening.onsuccess = () => {
    const reading = opening.result.transaction("b").objectStore("b").get("c");
    reading.onsuccess = () => resolve(reading.result);
  };
  opening.onerror = reject;
})"""


def executable(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", browser.PROGRAMS[:4])
def test_a_browser_on_the_path_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.find() is None or browser.find() in browser.PROGRAMS
    path = executable(tmp_path / name)
    assert browser.program() == str(path)


def test_the_application_of_macos_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = executable(tmp_path / "Google Chrome")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(browser, "PROGRAMS", ("chromium", str(application)))
    assert browser.program() == str(application)


def test_without_a_browser_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser, "PROGRAMS", ("no-such-browser",))
    with pytest.raises(BrowserError, match="apt install chromium"):
        browser.program()


@pytest.mark.parametrize(("user", "without_sandbox"), [(0, True), (1000, False)])
def test_only_root_runs_without_the_sandbox(
    user: int, without_sandbox: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "program", lambda: "chromium")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert ("--no-sandbox" in browser.options()["args"]) is without_sandbox


@pytest.fixture
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture
def running(playwright: Playwright) -> Iterator[Browser]:
    with run_browser(playwright) as started:
        yield started


@pytest.fixture
def page(running: Browser) -> Iterator[Page]:
    with running.new_page() as page:
        page.set_content(PAGE)
        yield page


@needs_browser
def test_polling_waits_for_a_value_and_gives_up(page: Page) -> None:
    page.evaluate("setTimeout(() => { document.querySelector('#a').textContent = '2' }, 50)")
    script = "() => document.querySelector('#a').textContent"
    assert poll(page, script, lambda value: value == "2") == "2"
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s for"):
        poll(page, script, lambda value: value == "3", seconds=0.1)


@needs_browser
@pytest.mark.parametrize(
    "script", ["console.error('bad')", "setTimeout(() => { throw new Error('bad') })"]
)
def test_an_error_of_the_page_fails(page: Page, script: str) -> None:
    with pytest.raises(BrowserError, match="bad"), without_errors(page):
        page.evaluate(f"() => {{ {script} }}")
        page.evaluate("() => new Promise((resolve) => setTimeout(resolve))")
    with without_errors(page, expected=["bad"]):
        page.evaluate(f"() => {{ {script} }}")
        page.evaluate("() => new Promise((resolve) => setTimeout(resolve))")
    with without_errors(page):
        page.evaluate("() => console.log('fine')")


@needs_browser
def test_a_page_reaches_no_other_host(running: Browser) -> None:
    with running.new_page() as page, pytest.raises(Error, match="ERR_NAME_NOT_RESOLVED"):
        page.goto("http://example.test/")


@needs_browser
def test_a_profile_outlives_a_browser_that_is_killed(
    playwright: Playwright, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGE)
    profile = tmp_path / "profile"
    with run_profile(profile, playwright) as context:
        page = context.pages[0]
        page.goto(file.as_uri())
        assert page.evaluate("() => [innerWidth > 0, 'ontouchstart' in window]") == [True, True]
        page.evaluate(REMEMBER)
        kill(profile)
        with pytest.raises(Error):
            page.evaluate("() => 1")
    with run_profile(profile, playwright) as context:
        page = context.pages[0]
        page.goto(file.as_uri())
        assert page.evaluate(REMEMBERED) == "kept"
