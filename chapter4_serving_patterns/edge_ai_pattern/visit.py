"""Visits the page as a person does: it draws a digit by touch, in a Chromium that stays installed.

`python visit.py 7` prints what the page says. The profile of the browser stays in .local/browser;
`--new` begins with an empty one, and `--tamper` changes a byte of every model on its way.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, Route, sync_playwright

HERE = Path(__file__).parent
URL = f"http://127.0.0.1:{os.environ.get('PORT', '8000')}/"
PROFILE = HERE / ".local/browser"
BROWSERS = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
PATIENCE_SECONDS = 60
# A policy of the page forbids what Playwright's own waiting needs, so this asks again.
POLL_SECONDS = 0.02
STATE = "() => document.documentElement.dataset.update"


def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    return found or sys.exit("error: there is no Chromium or Chrome: apt install chromium")


def draw(page: Page, strokes: list[list[list[float]]]) -> None:
    """Draws with a finger; positions are from 0 to 1."""
    paper = page.locator("#paper")
    paper.scroll_into_view_if_needed()
    box = paper.bounding_box() or sys.exit("error: the page shows no paper")
    touch = page.context.new_cdp_session(page)
    for stroke in strokes:
        for at, (x, y) in enumerate(stroke):
            place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            kind = "touchMove" if at else "touchStart"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [place]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def settled(page: Page) -> str:
    """Waits until the page has asked for an update, and returns what has come of it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (state := page.evaluate(STATE)) in (None, "asking"):
        if time.monotonic() > deadline:
            sys.exit(f"error: the page is not ready: {page.inner_text('body')}")
        time.sleep(POLL_SECONDS)
    return str(state)


def tamper(route: Route) -> None:
    response = route.fetch()
    body = bytearray(response.body())
    body[len(body) // 2] ^= 1
    route.fulfill(response=response, body=bytes(body))


def visit(context: BrowserContext, digit: str) -> list[str]:
    """Returns what the page says, and how many requests the drawing has sent."""
    page = context.pages[0]
    page.goto(URL)
    settled(page)
    sent: list[str] = []
    context.on("request", lambda request: sent.append(request.url))
    draw(page, json.loads((HERE / "drawings.json").read_text("utf-8"))[digit])
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "looks like" not in (says := page.inner_text("#says")) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    label = f"{says} Version {page.inner_text('#version')}, {len(sent)} requests sent."
    return [page.inner_text("#news"), label]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("digit", choices=list("0123456789"))
    parser.add_argument("--new", action="store_true", help="with a browser that was never here")
    parser.add_argument("--tamper", action="store_true", help="change a byte of every model")
    arguments = parser.parse_args()
    if arguments.new:
        shutil.rmtree(PROFILE, ignore_errors=True)
    with sync_playwright() as playwright:
        phone = playwright.devices["Pixel 7"]
        phone.pop("default_browser_type")
        context = playwright.chromium.launch_persistent_context(
            PROFILE,
            executable_path=browser(),
            # Chromium's sandbox does not work for root, as in many containers.
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
            **phone,
        )
        if arguments.tamper:
            context.route("**/releases/*", tamper)
        print(*visit(context, arguments.digit), sep="\n")
        context.close()


if __name__ == "__main__":
    main()
