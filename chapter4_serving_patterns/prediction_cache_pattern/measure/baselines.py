"""The API with a model that counts its rows, and with mechanisms that can be switched off."""

import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from ..app import main, parallel
from ..app.cache import Cache, Compute, Content, Found
from ..app.model import Model
from ..app.schema import FEATURES, PredictRequest, Probabilities

app, state = main.app, main.app.state


class CountingModel(Model):
    """The shipped model, which counts its rows and can be held."""

    def predict(self, rows: list[list[float]]) -> NDArray[Any]:
        while state.hold and state.hold.exists():
            time.sleep(0.005)
        state.counts["computed"] += len(rows)
        return super().predict(rows)


class SwitchableCache(Cache):
    """The shipped cache, parts of which can be switched off."""

    async def get_many(self, keys: list[bytes], compute: Compute) -> Found:
        if state.off == "single flight":
            values, counts = await self.look_up(keys)
            values |= await self.compute(keys, compute)
            await self.store(values)
            return Found([values[key] for key in keys], counts)
        return await super().get_many(keys, compute)

    async def look_up(self, keys: list[bytes]) -> tuple[dict[bytes, bytes], Counter[str]]:
        looked_up = await super().look_up(keys)
        state.counts["looked_up"] += 1
        return looked_up

    async def take_leases(self, keys: list[bytes]) -> dict[bytes, Content]:
        return {} if state.off == "lease" else await super().take_leases(keys)


@app.post("/switch")
async def switch(
    model: Path,
    off: Literal["", "lease", "single flight", "version"] = "",
    lookup: Literal["sequential", "parallel"] = "sequential",
    deadline_seconds: float = main.settings.redis_deadline_seconds,
    hold: Path | None = None,
) -> None:
    """Begins to count, with one mechanism off; while the file `hold` exists, the model waits."""
    state.cache.__class__ = SwitchableCache
    state.model = CountingModel(model, FEATURES)
    if off == "version":
        state.model.metadata["sha256"] = ""
    state.cache.deadline_seconds, state.cache.resumes_at = deadline_seconds, 0.0
    main.settings.lookup = lookup
    state.off, state.hold, state.counts = off, hold, Counter(computed=0, looked_up=0)


@app.get("/counts")
async def read_counts() -> dict[str, int]:
    """Returns the counts, and how many computations go on although nobody waits for them."""
    return {**state.counts, "unawaited": len(parallel.unawaited)}


@app.post("/uncached")
async def uncached(body: PredictRequest) -> Probabilities:
    """Answers as a server without a cache, which calls its model at once."""
    return Probabilities(prediction=state.model.predict(body.data).tolist())


@app.post("/ping")
async def ping(body: PredictRequest) -> dict[str, bool]:
    """Reads a request as `/predict` does, and asks Redis for nothing."""
    return {"pong": await state.cache.ask(state.cache.redis.ping)}
