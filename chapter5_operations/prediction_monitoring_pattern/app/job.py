"""The job simulates callers, and plants a fault in what they send when it is told to."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
from fastapi import FastAPI, HTTPException
from fastapi.routing import APIRoute
from pydantic import BaseModel

from .callers import FAULTS, draw, load
from .docs import add_docs
from .route import JsonRoute
from .schema import Refusal
from .settings import Settings

log = logging.getLogger("uvicorn.error")

TICK_SECONDS = 0.05
AT_ONCE = 16
# How many times as many requests there are.
RATES = {"surge": 10, "silence": 0}
NONE = "none"
NAMES = [NONE, *FAULTS, *RATES]

settings = Settings()
NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "There is no such fault"}
}


class Planted(BaseModel):
    """The fault in what the callers send."""

    fault: str


class Callers:
    """Sends predictions, and later what came of some of them."""

    def __init__(self) -> None:
        self.fault = NONE
        self.iris = load(settings.model_directory)
        self.random = np.random.default_rng()
        self.slots = asyncio.Semaphore(AT_ONCE)
        self.is_answered = True

    async def run(self) -> None:
        """Sends requests on a schedule, however long the responses take."""
        timeout = aiohttp.ClientTimeout(total=settings.api_deadline_seconds)
        async with (
            aiohttp.ClientSession(settings.api_url, timeout=timeout) as self.session,
            asyncio.TaskGroup() as tasks,
        ):
            due, last = float(settings.first_requests), time.monotonic()
            while True:
                drawn = draw(self.random, self.iris, int(due))
                if self.fault in FAULTS and len(drawn.rows):
                    drawn = FAULTS[self.fault](self.random, self.iris, drawn)
                for row, label in zip(drawn.rows.tolist(), drawn.labels.tolist(), strict=True):
                    tasks.create_task(self.call(row, label))
                await asyncio.sleep(TICK_SECONDS)
                now = time.monotonic()
                rate = settings.requests_per_second * RATES.get(self.fault, 1)
                due, last = due % 1 + (now - last) * rate, now

    async def call(self, row: list[float], label: str) -> None:
        """Predicts a row; a share of the callers knows the label later."""
        answer = await self.post("/predict", {"data": [row]})
        if answer and self.random.random() < settings.outcome_share:
            await asyncio.sleep(settings.outcome_delay_seconds)
            event = {"job_id": answer["job_id"], "event_id": "1", "event": "label", "value": label}
            await self.post("/event", event)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Sends a request; callers go on without an answer."""
        answer: dict[str, Any] | None = None
        reason = ""
        async with self.slots:
            try:
                async with self.session.post(path, json=body) as response:
                    answer = await response.json() if response.ok else None
                    reason = f"{response.status}"
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                reason = repr(error)
        if (answer is not None) != self.is_answered:
            self.is_answered = answer is not None
            what = "an answer" if self.is_answered else "no answer"
            log.warning("%s from %s: %s", what, path, reason)
        return answer


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Calls the API until the server stops."""
    app.state.callers = Callers()
    calls = asyncio.create_task(app.state.callers.run())
    log.info("simulating callers of %s", settings.api_url)
    yield
    calls.cancel()
    await asyncio.wait([calls])


app = FastAPI(
    title="prediction_monitoring_pattern: job",
    description=__doc__,
    version="0.1.0",
    lifespan=lifespan,
    docs_url=None,
    redoc_url=None,
    # Without this, FastAPI looks for a tracer on every request.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.router.route_class = JsonRoute
add_docs(app)


@app.get("/fault", tags=["fault"])
async def planted() -> Planted:
    """Names the fault."""
    return Planted(fault=app.state.callers.fault)


@app.post("/fault/{name}", tags=["fault"], responses=NOT_FOUND)
async def plant_fault(name: str) -> Planted:
    """Plants a fault instead of the last one; `none` lets the callers send what is usual."""
    if name not in NAMES:
        raise HTTPException(404, f"there is no such fault; choose {', '.join(NAMES)}")
    app.state.callers.fault = name
    log.warning("the planted fault is %s", name)
    return Planted(fault=name)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"])
async def ready() -> dict[str, str]:
    """The callers call, whether or not the API answers."""
    return {"status": "ready"}


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
