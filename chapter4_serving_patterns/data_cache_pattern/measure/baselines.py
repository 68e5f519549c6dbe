"""The API with a count of its work, and with mechanisms that can be switched off."""

import json
import time
from collections import Counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..app import main
from ..app.cache import Found
from ..app.codec import decode, encode
from ..app.model import Model
from ..app.pictures import Pictures
from ..app.schema import PredictRequest
from ..app.store import Store

app, state = main.app, main.app.state
Off = Literal["", "cache", "codec"]


class CountingModel(Model):
    """The shipped model, which counts its calls and rows."""

    def predict(self, tensors: NDArray[np.float32]) -> NDArray[np.float32]:
        state.counts.update(model_calls=1, rows_predicted=len(tensors))
        return super().predict(tensors)


class CountingStore(Store):
    """The shipped store, which counts its queries and the pictures that it returns."""

    async def versions(self, ids: list[str]) -> dict[str, int]:
        state.counts.update(version_queries=1)
        return await super().versions(ids)

    async def pictures(self, ids: list[str]) -> dict[str, bytes]:
        state.counts.update(pictures_read=len(ids))
        return await super().pictures(ids)


class SwitchablePictures(Pictures):
    """The shipped pictures without the cache, or with the codec of the book: lists in JSON."""

    async def get_many(self, ids: list[str]) -> Found:
        if state.off == "cache":
            return Found(await self.fetch(ids), Counter(misses=len(ids)))
        if state.off == "codec":
            return Found([await self.get_json(each) for each in ids], Counter())
        return await super().get_many(ids)

    async def get_json(self, picture_id: str) -> bytes:
        if text := await self.cache.redis.get(picture_id):
            return encode(np.array(json.loads(text), np.float32))
        [value] = await self.fetch([picture_id])
        [tensor] = decode([value], self.preprocessing.side)
        await self.cache.redis.set(picture_id, json.dumps(tensor.tolist()))
        return value

    def prepare(self, picture_id: str, image: bytes) -> bytes:
        state.counts.update(prepared=1)
        return super().prepare(picture_id, image)


@app.post("/switch")
async def switch(
    off: Off = "",
    freshness: Literal["version", "ttl"] = "version",
    ttl_seconds: float = main.settings.ttl_seconds,
) -> None:
    """Begins to count, with a mechanism switched off."""
    state.model.__class__ = CountingModel
    state.pictures.__class__, state.pictures.store.__class__ = SwitchablePictures, CountingStore
    state.pictures.freshness, state.pictures.cache.ttl_seconds = freshness, ttl_seconds
    state.off = off
    names = "model_calls", "rows_predicted", "version_queries", "pictures_read", "prepared"
    state.counts = Counter(dict.fromkeys(names, 0))


@app.get("/counts")
async def read_counts() -> dict[str, int]:
    """Returns the counts since the last switch."""
    return dict(state.counts)


@app.post("/time")
async def time_before_the_model(body: PredictRequest) -> dict[str, Any]:
    """Returns how long `/predict` waits before it calls the model."""
    began = time.perf_counter()
    found = await state.pictures.get_many(body.data)
    decode(found.values, state.pictures.preprocessing.side)
    return {"milliseconds": (time.perf_counter() - began) * 1000, "hits": found.counts["hits"]}
