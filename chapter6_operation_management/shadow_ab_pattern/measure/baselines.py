"""A shadow with planted faults, and the control: a live version that waits for its shadow."""

import asyncio
import os
from contextlib import suppress

import httpx
import numpy as np
from numpy.typing import NDArray
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..app import main
from ..app.model import Model

DELAY_SECONDS = {"late": 2.0, "slow": 0.02}
PATHS = ("/predict", "/predict/label")
fault = "none"
chance = np.random.default_rng(0)


class Faulty(Model):
    """Predicts with the fault that is planted now."""

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        probabilities = super().predict(rows)
        if fault == "failing":
            raise RuntimeError("a planted fault")
        if fault == "shuffled":
            probabilities = chance.permuted(probabilities, axis=1)
        if fault == "never":
            probabilities[:, -1] = 0
        return probabilities


class Delaying:
    """Answers later; others are served meanwhile."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if fault in DELAY_SECONDS and scope["type"] == "http" and scope["path"] in PATHS:
            await asyncio.sleep(DELAY_SECONDS[fault])
        await self.app(scope, receive, send)


class Waiting:
    """Sends each request to the shadow too, and waits for its answer before its own."""

    def __init__(self, app: ASGIApp, url: str) -> None:
        self.app, self.url = app, url
        self.client = httpx.AsyncClient(
            timeout=60, trust_env=False, limits=httpx.Limits(max_connections=None)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        # The guard runs the application once the body is complete.
        message = await receive()
        with suppress(httpx.HTTPError):
            await self.client.post(self.url + scope["path"], content=message["body"])

        async def again() -> Message:
            return message

        await self.app(scope, again, send)


main.Model = Faulty  # type: ignore[attr-defined]
app = main.app
inner = main.app.middleware_stack.app  # type: ignore[union-attr]
url = os.environ.get("SHADOW_URL")
main.app.middleware_stack.app = Waiting(inner, url) if url else Delaying(inner)  # type: ignore[union-attr]


@app.post("/fault/{name}")
async def plant(name: str) -> None:
    """Plants the fault before a hyphen, which makes another model of this one."""
    global fault
    log = app.state.log
    log.marks |= {"model": f"{name}-{log.marks['model'].rpartition('-')[2]}"}
    fault = name.partition("-")[0]
