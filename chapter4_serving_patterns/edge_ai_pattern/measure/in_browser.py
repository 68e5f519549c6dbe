"""Counts what the page does in Chromium: predict, refuse, survive a kill, and read drawings."""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from playwright.sync_api import BrowserContext, Page, Playwright

from tools.measure.browser import kill, poll, run_profile, without_errors

from .. import visit
from .processes import Counted, Publisher, Stand
from .shelf import INSTALLED, NEWEST

# What Chromium writes about a request that gets no response.
OUT_OF_REACH = "net::ERR_CONNECTION_REFUSED"
STATE = "() => document.documentElement.dataset.update"
PREDICT = """async (rows) => {
  const { predictRows } = await import("/page.js");
  const found = [], times = [];
  for (const row of rows) {
    const begin = performance.now();
    found.push((await predictRows([row]))[0]);
    times.push(performance.now() - begin);
  }
  return [found, times];
}"""
PIXELS = """async (drawings) => {
  const { pixelsOf } = await import("/draw.js");
  return drawings.map((strokes) => [...pixelsOf(strokes)]);
}"""
# Stops the page for good when it writes for the nth time, so that it can be killed there.
STOP_AT_WRITE = """(fatal) => {
  let writes = 0;
  const put = IDBObjectStore.prototype.put;
  IDBObjectStore.prototype.put = function (...values) {
    if (++writes === fatal) { console.log("stopped"); for (;;); }
    return put.apply(this, values);
  };
}"""
# The page writes the model, its metadata, what is signed, and the pointer. It is killed before the
# second, third and fourth of them, and once it says that it is done; a quick measurement kills it
# where most can go wrong.
KILLED_AT, KILLED_QUICKLY_AT = (2, 3, 4, None), (4, None)
# The counts need no fast code: what is not called is not compiled.
QUICK_TO_START = ["--js-flags=--wasm-lazy-compilation", "--disable-gpu"]
TOLERANCE = 1e-6


class Visit(NamedTuple):
    """A page that has asked for an update, and what has come of it."""

    page: Page
    state: str
    ready_seconds: float


@contextmanager
def visiting(
    playwright: Playwright,
    profile: Path,
    url: str,
    expected: Sequence[str] = (),
    **settings: Any,
) -> Iterator[Visit]:
    """Opens the page in a browser with a profile; any error of the page is one of the program."""
    with run_profile(profile, playwright, **settings) as context:
        page = context.pages[0]
        with without_errors(page, expected):
            began = time.perf_counter()
            page.goto(url)
            ready = "() => document.querySelector('#paper.ready') !== null"
            poll(page, f"() => ({ready})() || ({STATE})() === 'failed'")
            seconds = time.perf_counter() - began
            yield Visit(page, settled(page), seconds)


def settled(page: Page) -> str:
    return str(poll(page, STATE, lambda state: state not in (None, "asking")))


def ask(page: Page) -> str:
    """Presses the button, and returns what has come of the update."""
    page.click("#update")
    return settled(page)


def version_of(page: Page) -> int:
    return int(page.inner_text("#version"))


def predict(page: Page, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Predicts each row by itself, and returns the probabilities and the median time in ms."""
    found, times = page.evaluate(PREDICT, rows.tolist())
    return np.asarray(found), statistics.median(times)


def count_requests(context: BrowserContext) -> list[str]:
    """Returns a list that grows with each request of a browser."""
    found: list[str] = []
    context.on("request", lambda request: found.append(request.url))
    return found


def count_refused(
    page: Page, publisher: Publisher, bad: dict[str, tuple[Path, int]], installed: int
) -> list[str]:
    """Returns the names of the bad releases that the page refuses, while the old one answers."""
    refused = []
    for name, (directory, version) in bad.items():
        publisher.publish(directory, version)
        if ask(page) == "refused" and version_of(page) == installed:
            refused.append(name)
    return refused


def stop_and_kill(page: Page, profile: Path, at_write: int | None) -> None:
    """Kills the browser while the page updates, before a write or once it is done."""
    if at_write is None:
        ask(page)
    else:
        page.evaluate(STOP_AT_WRITE, at_write)
        with page.expect_console_message(lambda message: message.text == "stopped"):
            page.evaluate("() => document.querySelector('#update').click()")
    kill(profile)


def draw_and_read(page: Page, drawings: dict[str, Any]) -> int:
    """Draws digits by touch, and returns how many the page reads as they are meant."""
    right = 0
    for digit, strokes in drawings.items():
        page.click("#clear")
        visit.draw(page, strokes)
        said = poll(
            page,
            "() => document.querySelector('#says').textContent",
            lambda text: "looks like" in text,
        )
        right += f"like a {digit} " in said
    return right


def drawings() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(visit.__file__).parent / "drawings.json").read_bytes())
    return found


def varied(count: int, seed: int = 0) -> list[tuple[int, list[list[list[float]]]]]:
    """Returns digits with their strokes: the ten drawings, each turned, slanted, scaled, shaken."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        digit = number % 10
        angle, slant = random.normal(0, [0.12, 0.15])
        width, height = random.uniform(0.75, 1.25, 2)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        warp = turn @ np.array([[width, slant], [0, height]])
        strokes = [
            [(warp @ point + random.normal(0, 0.012, 2)).tolist() for point in stroke]
            for stroke in drawings()[str(digit)]
        ]
        found.append((digit, strokes))
    return found


def drawn_share(page: Page, count: int) -> float:
    """Returns the share of varied drawings that the model of the page reads as they are meant."""
    digits, strokes = zip(*varied(count), strict=True)
    pixels = page.evaluate(PIXELS, list(strokes))
    found, _ = predict(page, np.asarray(pixels))
    return float(np.mean(found.argmax(axis=1) == np.asarray(digits)))


def count_online(
    visit: Visit, stand: Stand, publisher: Publisher
) -> tuple[dict[str, int], dict[str, int]]:
    """Counts what the page does while it could reach the publisher, and the control."""
    requests = count_requests(visit.page.context)
    before = publisher.sent()["requests"]
    found, _ = predict(visit.page, stand.rows)
    sent = len(requests) + publisher.sent()["requests"] - before
    counts = {
        "sent_while_predicting": sent,
        "rows_as_in_python": count_equal(found, stand.answers[INSTALLED]),
        "drawn_right": draw_and_read(visit.page, drawings()),
        "bad_updates_refused": len(count_refused(visit.page, publisher, stand.bad, INSTALLED)),
    }
    return counts, {"rows_as_in_python": count_equal(found, stand.answers[1])}


def count_equal(found: np.ndarray, expected: np.ndarray) -> int:
    """Counts the rows whose probabilities are those of Python."""
    return int((np.abs(found - expected).max(axis=1) <= TOLERANCE).sum())


def count_in_browser(stand: Stand, playwright: Playwright, *, quick: bool) -> Counted:
    """Counts everything that the page does, in one profile whose browser is killed at times."""
    kills = KILLED_QUICKLY_AT if quick else KILLED_AT
    visit = partial(visiting, playwright, stand.directory / "profile", arguments=QUICK_TO_START)
    profile = stand.directory / "profile"
    valid = 0
    with stand.publisher(INSTALLED) as publisher:
        url = f"{publisher.url}/"
        with visit(url) as first:
            counts, control = count_online(first, stand, publisher)
            publisher.publish(stand.shelf.directory, NEWEST)
            stop_and_kill(first.page, profile, kills[0])
        for at_write in kills[1:]:
            publisher.publish(stand.shelf.directory, INSTALLED)
            with visit(url) as again:
                valid += is_valid(again.page, stand, INSTALLED)
                publisher.publish(stand.shelf.directory, NEWEST)
                stop_and_kill(again.page, profile, at_write)
    with visit(url, [OUT_OF_REACH]) as offline:
        found, _ = predict(offline.page, stand.rows)
        valid += is_valid(offline.page, stand, NEWEST)
    counts |= {"rows_offline": len(found), "valid_after_kill": valid}
    wanted = {
        "sent_while_predicting": 0,
        "rows_as_in_python": len(stand.rows),
        "drawn_right": 10,
        "bad_updates_refused": len(stand.bad),
        "rows_offline": len(stand.rows),
        "valid_after_kill": len(kills),
    }
    return Counted(counts, {name: ("==", bound) for name, bound in wanted.items()}, control)


def is_valid(page: Page, stand: Stand, version: int) -> bool:
    """Tells whether a version is installed, and predicts as it should."""
    few = stand.rows[:5]
    found, _ = predict(page, few)
    return version_of(page) == version and count_equal(found, stand.answers[version][:5]) == 5
