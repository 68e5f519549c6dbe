"""Counts what the claim says, with each mechanism on and off."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from redis import Redis

from tools.measure.load import Request, Run, closed_loop

from ..app.codec import decode
from ..app.model import Model
from ..app.pictures import Pictures
from ..app.seed import prewarm
from .processes import Bench, bench, body_of

IDS_PER_REQUEST = 4
TTL_SECONDS = 0.2
SEED = 0


class Size(NamedTuple):
    """How many IDs are sent, how many of them are different, and how many pictures change."""

    ids_sent: int
    distinct: int
    changes: int
    requests_after_a_change: int


FULL, QUICK = Size(2_000, 100, 20, 10), Size(200, 20, 5, 4)


class Expected(NamedTuple):
    """What the model predicts for each picture, computed without the API."""

    of_image: Mapping[bytes, np.ndarray]

    @classmethod
    def of(cls, both: Bench) -> "Expected":
        pictures = Pictures(both.settings)
        model = Model(both.models)
        images = [*both.photos.values()]
        values = [pictures.prepare("", image) for image in images]
        tensors = decode(values, pictures.preprocessing.side)
        predicted = [model.predict(tensors[i : i + 1])[0] for i in range(len(images))]
        return cls(dict(zip(images, predicted, strict=True)))

    def is_of(self, answer: Sequence[float], image: bytes) -> bool:
        return bool(np.allclose(answer, self.of_image[image], atol=1e-5))


def send(both: Bench, batches: Sequence[Sequence[str]], connections: int = 8) -> Run:
    """Sends requests to the replicas in turn; every one has to be answered."""
    requests = [
        Request(f"{both.apis[number % len(both.apis)].url}/predict", body_of(ids))
        for number, ids in enumerate(batches)
    ]
    run = asyncio.run(
        closed_loop(
            requests,
            connections=connections,
            count=len(requests),
            deadline_seconds=60,
            keep_bodies=True,
        )
    )
    if run.statuses[200] != run.sent:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")
    return run


def answers_of(run: Run) -> list[list[list[float]]]:
    return [json.loads(body)["prediction"] for body in run.bodies or []]


def draw(ids: Sequence[str], size: Size) -> list[list[str]]:
    """Draws requests for different pictures, of which some come often and most rarely."""
    chance = np.random.default_rng(SEED)
    shares = 1 / np.arange(1, len(ids) + 1)
    first = chance.permutation(list(ids)).reshape(-1, IDS_PER_REQUEST).tolist()
    left = size.ids_sent // IDS_PER_REQUEST - len(first)
    drawn = [
        chance.choice(list(ids), IDS_PER_REQUEST, replace=False, p=shares / shares.sum()).tolist()
        for _ in range(left)
    ]
    order = chance.permutation(len(first) + left)
    return [(first + drawn)[number] for number in order]


def count_work(both: Bench, expected: Expected, size: Size, off: str = "") -> dict[str, int]:
    """Counts what is fetched, prepared and predicted, and the answers that are right."""
    both.switch(off)
    batches = draw([*both.photos], size)
    answers = answers_of(send(both, batches))
    counts = both.counts()
    equal = [
        expected.is_of(answer, both.photos[picture_id])
        for batch, entries in zip(batches, answers, strict=True)
        for picture_id, answer in zip(batch, entries, strict=True)
    ]
    names = "pictures_read", "prepared", "rows_predicted"
    return {**{name: counts[name] for name in names}, "answers_equal": sum(equal)}


def count_stale(both: Bench, expected: Expected, size: Size, freshness: str = "version") -> int:
    """Changes pictures one after another; returns how many answers are of a former picture."""
    both.switch(freshness=freshness)
    ids = [*both.photos]
    stale = 0
    send(both, [[each] for each in ids])
    for number in range(size.changes):
        changed, new = ids[number], both.photos[ids[number + 1]]
        both.change({changed: new})
        for [answer] in answers_of(send(both, [[changed]] * size.requests_after_a_change)):
            stale += not expected.is_of(answer, new)
    both.change(both.photos)
    return stale


def count_expired(both: Bench, expected: Expected, size: Size, ttl_seconds: float) -> int:
    """Changes pictures, and returns how many old answers come when they have to be gone."""
    both.switch(freshness="ttl", ttl_seconds=ttl_seconds)
    ids = [*both.photos][: size.changes + 1]
    send(both, [[each] for each in ids])
    new = {old: both.photos[other] for old, other in pairwise(ids)}
    both.change(new)
    time.sleep(TTL_SECONDS + 1)
    answers = answers_of(send(both, [[each] for each in new]))
    both.change(both.photos)
    images = new.values()
    return sum(not expected.is_of(a, i) for [a], i in zip(answers, images, strict=True))


def count_first_hits(both: Bench, *, prewarmed: bool) -> int:
    """Requests each picture once, and returns how many were prepared before."""
    both.switch()
    if prewarmed:
        cached, total = asyncio.run(prewarm(both.settings))
        if cached < total:
            raise SystemExit(f"error: only {cached} of {total} pictures are in the cache")
    send(both, [[each] for each in both.photos])
    return len(both.photos) - both.counts()["prepared"]


def count_entry_bytes(both: Bench, off: str = "") -> int:
    """Returns how many bytes the cache keeps for a picture."""
    both.switch(off)
    send(both, [[*both.photos][:1]])
    with Redis.from_url(both.redis.url) as client:
        [key] = client.keys()
        return int(client.strlen(key))


def count(directory: Path, size: Size) -> tuple[dict[str, int], dict[str, int]]:
    """Returns all counts, and those with a mechanism off."""
    with bench(directory, photos=size.distinct) as both:
        expected = Expected.of(both)
        counts = {
            "ids_sent": size.ids_sent,
            "distinct": size.distinct,
            **count_work(both, expected, size),
            "asked_after_changes": size.changes * size.requests_after_a_change,
            "stale_answers": count_stale(both, expected, size),
            "answers_older_than_ttl": count_expired(both, expected, size, TTL_SECONDS),
            "first_hits": count_first_hits(both, prewarmed=True),
            "entry_bytes": count_entry_bytes(both),
        }
        uncached = count_work(both, expected, size, "cache")
        control = {
            "pictures_read": uncached["pictures_read"],
            "prepared": uncached["prepared"],
            "stale_answers": count_stale(both, expected, size, "ttl"),
            "answers_older_than_ttl": count_expired(both, expected, size, 3_600),
            "first_hits": count_first_hits(both, prewarmed=False),
            "entry_bytes": count_entry_bytes(both, "codec"),
        }
    return counts, control


def claim_holds(counts: Mapping[str, int]) -> bool:
    """True if each picture was prepared once per version, and each answer was right and fresh."""
    every = ("rows_predicted", "answers_equal")
    once = ("pictures_read", "prepared", "first_hits")
    return (
        all(counts[name] == counts["ids_sent"] for name in every)
        and all(counts[name] == counts["distinct"] for name in once)
        and counts["stale_answers"] == counts["answers_older_than_ttl"] == 0
    )
