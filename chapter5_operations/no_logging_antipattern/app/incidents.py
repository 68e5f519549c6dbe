"""Simulates 6,000 requests with six incidents, and writes the truth where no operator looks.

The applications and their models are real, and run in this process. What is simulated: callers, two
replicas that take turns, the clock, how long the model takes, and its errors.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.types import Message

from . import bad
from . import main as good
from .log import Log, bytes_in, version_of
from .model import Model
from .record import Recorder
from .schema import FEATURES

logger = logging.getLogger("incidents")

SECONDS = 5_400
CALLERS = ("greenhouse", "museum", "school", "shop")
REPLICAS = ("good-a", "good-b")
# From which minute to which, by the question that finds it.
INCIDENTS = {
    "models": (10, 25),
    "other_unit": (30, 45),
    "p99_step": (35, 90),
    "burst": (50, 54),
    "repeats": (60, 65),
    "class_gone": (70, 90),
}
CM_PER_INCH = 2.54
# Beyond these, sensors that break show the same value. No such row is a virginica for the model.
SATURATED = [7.5, 9.0, 3.0, 1.0]
USUAL_MS, SLOW_MS, SLOW_SHARE = 2.0, 60.0, 0.1
FAILING_SHARE, USUALLY_FAILING_SHARE, INVALID_SHARE = 0.6, 0.002, 0.01
REPEAT_SECONDS, REPEATS = 5, 10
OUTCOME_SHARE = 0.5


class PlantedError(Exception):
    """The model fails because the simulation wants it to."""


class Call(NamedTuple):
    """A request, and what the simulation does with it."""

    second: float
    caller: str
    replica: str
    row: list[float | None]
    label: str
    ms: float
    is_other_model: bool = False
    is_in_inches: bool = False
    is_repeated: bool = False
    fails: bool = False
    has_outcome: bool = False


class Receipt(NamedTuple):
    """What a caller gets."""

    call: Call
    status: int
    job_id: str | None
    label: str | None


class Played(BaseModel):
    """The truth: when it began, the versions of the two models, and what all callers got."""

    start: float
    usual: str
    other: str
    receipts: list[Receipt]


class Stage:
    """The simulated clock, and the request of the moment."""

    def __init__(self, start: float) -> None:
        self.start = self.now = start
        self.call: Call | None = None

    def time(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now - self.start


class StagedModel(Model):
    """A real model that takes as long as the simulation says, or fails."""

    def __init__(self, directory: Path, stage: Stage) -> None:
        super().__init__(directory, FEATURES)
        self.stage = stage

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        if call := self.stage.call:
            if call.fails:
                raise PlantedError
            self.stage.now += call.ms / 1000
        return super().predict(rows)


def plan(flowers: Path, incidents: Collection[str] = INCIDENTS, seed: int = 0) -> list[Call]:
    """Returns a request for each second, and in a storm of retries ten more for every fifth."""
    draw = np.random.default_rng(seed)
    iris = json.loads(flowers.read_bytes())
    calls = []
    for second in range(SECONDS):
        now = {
            name for name in incidents if INCIDENTS[name][0] <= second // 60 < INCIDENTS[name][1]
        }
        is_storm = "repeats" in now and second % REPEAT_SECONDS == 0
        picked = draw.integers(len(iris["data"]))
        row = np.abs(iris["data"][picked] + draw.normal(scale=0.05, size=FEATURES))
        call = Call(
            second=second,
            caller="shop" if is_storm else str(draw.choice(CALLERS)),
            replica=str(draw.choice(REPLICAS)),
            row=[],
            label=iris["labels"][picked],
            ms=draw.lognormal(np.log(USUAL_MS), 0.3),
            fails=draw.random() < (FAILING_SHARE if "burst" in now else USUALLY_FAILING_SHARE),
            has_outcome=draw.random() < OUTCOME_SHARE,
        )
        if "class_gone" in now:
            row = np.minimum(row, SATURATED)
        if "other_unit" in now and call.caller == "museum":
            row, call = row / CM_PER_INCH, call._replace(is_in_inches=True)
        if "p99_step" in now and draw.random() < SLOW_SHARE:
            call = call._replace(ms=call.ms + SLOW_MS)
        is_other = "models" in now and call.replica == REPLICAS[1]
        call = call._replace(
            row=row.round(2).tolist(), is_other_model=is_other, is_repeated=is_storm
        )
        if draw.random() < INVALID_SHARE and not is_storm:
            call = call._replace(row=[None, *call.row[1:]], is_in_inches=False)
        calls.append(call)
        if is_storm:
            gap = (REPEAT_SECONDS - 1) / REPEATS
            calls += [call._replace(second=second + gap * n) for n in range(1, REPEATS + 1)]
    return sorted(calls, key=lambda call: call.second)


async def play(app: FastAPI, calls: list[Call], models: Path, start: float) -> Played:
    """Sends the requests one after the other."""
    stage = Stage(start)
    usual, other = StagedModel(models, stage), StagedModel(models / "other", stage)
    is_recorded = isinstance(app.middleware_stack, Recorder)
    if is_recorded:
        app.middleware_stack = recorder = Recorder(app.build_middleware_stack(), stage)
    receipts = []
    for call in calls:
        stage.now, stage.call = start + call.second, call
        app.state.model = other if call.is_other_model else usual
        if is_recorded:
            recorder.replica = call.replica
        receipts.append(await send(app, call))
        if is_recorded and receipts[-1].label and call.has_outcome:
            Recorder.log.append("outcome", receipts[-1].job_id or "", labels=[call.label])
    return Played(
        start=start,
        usual=version_of(usual.metadata),
        other=version_of(other.metadata),
        receipts=receipts,
    )


async def send(app: FastAPI, call: Call) -> Receipt:
    """Sends a request to an application of this process."""
    body = json.dumps({"data": [call.row]}).encode()
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/predict/label",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"x-caller", call.caller.encode())],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8001),
    }
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def keep(message: Message) -> None:
        messages.append(message)

    # Starlette answers with a 500, and raises the error again for the server.
    with suppress(PlantedError):
        await app(scope, receive, keep)
    status, headers = messages[0]["status"], dict(messages[0]["headers"])
    answer = json.loads(messages[1]["body"])["prediction"][0] if status == 200 else None
    return Receipt(call, status, headers.get(b"x-job-id", b"").decode() or None, answer)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.incidents", description=__doc__)
    parser.add_argument("--truth", type=Path, required=True, help="folder for what callers got")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    settings = good.settings
    directory = settings.evidence_directory / "good"
    if bytes_in(directory):
        logger.error("the log has records already: make down ARGS=--volumes deletes them")
        return 1
    # It ends now, so that the newest record is none from the future.
    start = time.time() // 60 * 60 - SECONDS
    calls = plan(settings.model_directory / "iris.json")
    Recorder.log = Log(directory, settings.log_segment_bytes, settings.log_max_bytes)
    for name, app in {"bad": bad.app, "good": good.app}.items():
        played = asyncio.run(play(app, calls, settings.model_directory, start))
        arguments.truth.mkdir(parents=True, exist_ok=True)
        (arguments.truth / f"{name}.json").write_text(played.model_dump_json(), "utf-8")
        logger.info("simulated %d requests to %s", len(calls), name)
    Recorder.log.close()
    for name, (first, _) in INCIDENTS.items():
        since = datetime.fromtimestamp(start + first * 60, UTC)
        logger.info("planted at %s: %s", since.isoformat(timespec="minutes"), name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
