"""Counts in one process: attempts, thresholds, and which parameter comes first."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import yaml

from tools.measure.server import wait_until

from ..app.decisions import Decisions, decide, to_ask
from ..app.models import Models
from ..app.parameters import InForce, ModelParameters, read
from .processes import write

Probabilities = Mapping[str, Sequence[float] | None]
Decide = Callable[[InForce, Probabilities, int], Decisions]

STEPS = 21
ATTEMPTS = (1, 2, 3)
# How often a model is called that does this, if it may be called `attempts` times.
CALLS: dict[str, Callable[[int], int]] = {
    "fails": lambda attempts: attempts,
    "fails once": lambda attempts: min(attempts, 2),
    "is overloaded": lambda attempts: 1,
    "hangs": lambda attempts: 1,
}
PATIENCE_SECONDS, HANG_SECONDS = 30.0, 0.2


class Scripted(ThreadingHTTPServer):
    """A model that does what it is told, and counts its calls."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.does = ""
        # A whole response, instead.
        self.sends = b""
        self.calls = 0
        self.over = threading.Event()


class Session(BaseHTTPRequestHandler):
    """One connection."""

    server: Scripted

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.calls += 1
        if self.server.does == "hangs":
            self.server.over.wait(PATIENCE_SECONDS)
            return
        if self.server.sends:
            self.wfile.write(self.server.sends)
            return
        is_right = self.server.does == "fails once" and self.server.calls > 1
        status = 200 if is_right else 503 if self.server.does == "is overloaded" else 500
        content = b'{"prediction":[[0.0,1.0]]}'
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Every request would be a line."""


@contextmanager
def scripted() -> Iterator[Scripted]:
    with Scripted() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()


def count_attempts_wrong(kind: type[Models] = Models) -> int:
    """Returns in how many of 12 cases a model is not called as often as it should be."""

    async def ask(model: ModelParameters) -> list[float] | None:
        models = kind({"model": server.url}, 10)
        try:
            return await models.ask("model", model, "/predict", b"{}", 1)
        finally:
            await models.close()

    wrong = 0
    with scripted() as server:
        for does, attempts in product(CALLS, ATTEMPTS):
            server.does, server.calls = does, 0
            seconds = HANG_SECONDS if does == "hangs" else PATIENCE_SECONDS
            model = ModelParameters(
                active=True,
                threshold=0.5,
                timeout_seconds=seconds,
                attempts=attempts,
                fallback=None,
            )
            answer = asyncio.run(ask(model))
            # A busy machine may read a request after its caller has gone.
            wait_until(lambda: server.calls > 0, "a call")
            is_answered = does == "fails once" and attempts > 1
            wrong += (server.calls, answer is not None) != (CALLS[does](attempts), is_answered)
    return wrong


def sweep(
    probabilities: Mapping[str, Sequence[float]], folder: Path, decides: Decide = decide
) -> dict[str, list[list[int]]]:
    """Returns the decisions of each model at each of 21 thresholds."""
    found: dict[str, list[list[int]]] = {name: [] for name in probabilities}
    rows = len(next(iter(probabilities.values())))
    for step in range(STEPS):
        threshold = {"threshold": step / (STEPS - 1)}
        write(folder / "swept.yml", **dict.fromkeys(probabilities, threshold))
        in_force = read(folder / "swept.yml", probabilities.keys())
        decisions = decides(in_force, probabilities, rows).prediction
        for name, each in found.items():
            each.append([row[name] for row in decisions])
    return found


def count_inversions(swept: Mapping[str, list[list[int]]]) -> int:
    """Returns how often a higher threshold accepts more rows."""
    accepted = [[sum(step) for step in steps] for steps in swept.values()]
    return sum(later > earlier for steps in accepted for earlier, later in pairwise(steps))


def count_precedence_wrong(
    folder: Path, changed: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: raw
) -> tuple[int, int]:
    """Returns in how many cases the wrong parameter decides, and of how many.

    The cases are all combinations of `stop`, and of `active` and `threshold` of the model and of
    `default`, so each pair of parameters contradicts each other in some of them.
    """
    wrong = cases = 0
    options = ((True, False), (True, False, None), (0.1, 0.9, None), (True, False), (0.1, 0.9))
    for stop, active, threshold, default_active, default_threshold in product(*options):
        own = {"active": active, "threshold": threshold}
        default = {"active": default_active, "threshold": default_threshold}
        rest = {"timeout_seconds": 1.0, "attempts": 1, "fallback": None}
        set_by_itself = {key: value for key, value in own.items() if value is not None}
        raw = {"stop": stop, "default": default | rest, "models": {"model": set_by_itself}}
        file = folder / "precedence.yml"
        file.write_text(yaml.safe_dump(changed(raw)), "utf-8")
        in_force = read(file, ["model"])
        answers = {name: [0.5] for name in to_ask(in_force.values)}
        (found,) = decide(in_force, answers, 1).prediction
        is_on = default_active if active is None else active
        bound = default_threshold if threshold is None else threshold
        expected = {"model": int(bound <= 0.5)} if is_on and not stop else {}
        wrong += found != expected
        cases += 1
    return wrong, cases
