"""The controls: web without one of its mechanisms, and with another client library."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import httpx
from fastapi import FastAPI

from ..web import main, sorting
from ..web.predictor import HEADERS, Predictor
from ..web.sorting import lane_of

has_prediction: ContextVar[bool] = ContextVar("has_prediction", default=False)
counts: Counter[str] = Counter()


class CountingPredictor(Predictor):
    """The shipped client, which also notes in the request's context that it has returned."""

    async def predict(self, body: bytes, rows: int) -> list[str]:
        labels = await super().predict(body, rows)
        has_prediction.set(True)
        return labels


class ForgetfulPredictor(Predictor):
    """Returns a guess at once, and lets the prediction come."""

    async def predict(self, body: bytes, rows: int) -> list[str]:
        self.task = asyncio.create_task(super().predict(body, rows))
        return ["0"] * rows


class SilentPredictor(Predictor):
    """Does not pass the deadline on."""

    def headers(self, deadline: float) -> dict[str, str]:
        return {}


class HttpxPredictor(Predictor):
    """Sends the same requests with httpx."""

    client = httpx.AsyncClient(headers=HEADERS, timeout=httpx.Timeout(None), trust_env=False)

    async def fetch(self, path: str, body: bytes | None, deadline: float) -> tuple[int, bytes]:
        headers = self.headers(deadline)
        response = await self.client.post(f"{self.url}{path}", content=body, headers=headers)
        return response.status_code, response.content


def counted_lane_of(label: str) -> str:
    """Takes the next step, and counts whether the prediction was there."""
    counts["steps"] += 1
    counts["steps_after_prediction"] += has_prediction.get()
    return lane_of(label)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Replaces the client with the one that the variable names."""
    async with main.lifespan(app):
        shipped: Predictor = app.state.predictor
        await shipped.close()
        kind: type[Predictor] = globals()[os.environ["CLIENT"]]
        app.state.predictor = kind(shipped.url, shipped.deadline_seconds, shipped.most_at_once)
        sorting.lane_of = counted_lane_of
        yield
        await app.state.predictor.close()


app = main.app
app.router.lifespan_context = lifespan
app.add_api_route("/counts", lambda: counts)
