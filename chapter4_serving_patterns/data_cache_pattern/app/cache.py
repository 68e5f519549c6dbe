# Copied from chapter4_serving_patterns/prediction_cache_pattern/app/cache.py
"""A cache in Redis: each missing value is computed once, and without Redis all are computed."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic import BaseModel
from redis import RedisError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

logger = logging.getLogger("uvicorn.error")

# For how long Redis is left alone after it was down or too slow.
PAUSE_SECONDS = 1.0
POLL_SECONDS = 0.005
# What a key holds until its value is computed: this, and 16 bytes that name the process.
LEASE = b"lease:"

Compute = Callable[[list[bytes]], Coroutine[Any, Any, list[bytes]]]
# The bytes that a key holds, None for nothing, or why Redis has not returned them.
Content = bytes | RedisError | None


class Found(NamedTuple):
    """The values of some keys, in their order, and how many of them came from where."""

    values: list[bytes]
    counts: Counter[str]

    @property
    def cache_status(self) -> str:
        """Returns the header `Cache-Status` of RFC 9211."""
        hits, computed, stored = (self.counts[name] for name in ("hits", "computed", "stored"))
        if self.counts["bypassed"]:
            status = "fwd=bypass"
        elif hits == len(self.values):
            status = "hit"
        elif computed:
            status = "fwd=miss; stored" if stored else "fwd=miss"
        else:
            status = "fwd=miss; collapsed"
        return f'redis; {status}; detail="hits: {hits} of {len(self.values)}"'


class State(BaseModel):
    """What this process has found and computed, and what Redis holds, unless it is away."""

    hits: int = 0
    misses: int = 0
    bypassed: int = 0
    computed: int = 0
    stored: int = 0
    keys: int | None = None
    bytes: int | None = None
    max_bytes: int | None = None
    evicted: int | None = None
    expired: int | None = None


class Cache:
    """Holds the connections to Redis, and what this process is computing."""

    def __init__(
        self,
        redis_url: str,
        *,
        max_connections: int,
        deadline_seconds: float,
        lease_seconds: float,
        ttl_seconds: float,
        value_bytes: int,
    ) -> None:
        # A pooled connection may be stale, because Redis has restarted since: hence a second try.
        retry = Retry(NoBackoff(), 1)
        self.redis = Redis.from_url(redis_url, max_connections=max_connections, retry=retry)
        self.deadline_seconds = deadline_seconds
        self.lease_seconds = lease_seconds
        self.ttl_seconds = ttl_seconds
        # What has another length is a lease, was cut off, or is not ours.
        self.value_bytes = value_bytes
        self.own_lease = LEASE + uuid4().bytes
        self.computing: dict[bytes, asyncio.Future[bytes | None]] = {}
        self.resumes_at = 0.0
        self.counts: Counter[str] = Counter()

    async def get_many(self, keys: list[bytes], compute: Compute) -> Found:
        """Returns the value of each key; `compute` gets the keys whose values are missing.

        However many calls miss a value at the same time, in all processes, one computes it.
        """
        values, counts = await self.look_up(keys)
        while missing := [key for key in dict.fromkeys(keys) if key not in values]:
            # Nothing is awaited between this and the entry of `own` into `computing`.
            others = {key: self.computing[key] for key in missing if key in self.computing}
            if own := [key for key in missing if key not in others]:
                values |= await self.obtain(own, compute, counts)
            if others:
                # Unlike `await future`, this does not cancel the future if this call is cancelled.
                await asyncio.wait(others.values())
                # Without a result the other call has failed, and this one tries itself.
                results = {key: future.result() for key, future in others.items()}
                values |= {key: value for key, value in results.items() if value is not None}
        self.counts.update(counts)
        return Found([values[key] for key in keys], counts)

    async def look_up(self, keys: list[bytes]) -> tuple[dict[bytes, bytes], Counter[str]]:
        """Returns the values that Redis has, and counts them."""
        wanted = list(dict.fromkeys(keys))
        contents = await self.ask(self.redis.mget, wanted)
        values = self.valid(dict(zip(wanted, contents or (), strict=False)))
        hits = sum(key in values for key in keys)
        missed = "bypassed" if contents is None else "misses"
        return values, Counter({"hits": hits, missed: len(keys) - hits})

    async def obtain(
        self, keys: list[bytes], compute: Compute, counts: Counter[str]
    ) -> dict[bytes, bytes]:
        """Computes values, except those that another process computes: it waits for these."""
        loop = asyncio.get_running_loop()
        futures: dict[bytes, asyncio.Future[bytes | None]]
        futures = {key: loop.create_future() for key in keys}
        self.computing |= futures
        # By then, the leases of a process that has died have expired.
        patience_ends_at = loop.time() + self.lease_seconds
        values: dict[bytes, bytes] = {}
        try:
            while missing := [key for key in keys if key not in values]:
                contents = await self.take_leases(missing)
                new = self.valid(contents)
                own = [key for key in missing if key not in new]
                if loop.time() < patience_ends_at:
                    own = [key for key in own if not self.is_leased(contents.get(key))]
                if own:
                    new |= await self.compute(own, compute)
                for key, value in new.items():
                    futures[key].set_result(value)
                values |= new
                if own:
                    counts["computed"] += len(own)
                    counts["stored"] += await self.store({key: new[key] for key in own})
                elif not new:
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            for key, future in futures.items():
                del self.computing[key]
                if not future.done():
                    future.set_result(None)
        return values

    async def compute(self, keys: list[bytes], compute: Compute) -> dict[bytes, bytes]:
        """Computes values; if that fails, nobody has to wait until the leases expire."""
        try:
            return dict(zip(keys, await compute(keys), strict=True))
        except Exception:
            await self.ask(self.redis.delete, *keys)
            raise

    async def take_leases(self, keys: list[bytes]) -> dict[bytes, Content]:
        """Takes the lease of each key that holds nothing, and returns what the keys hold then."""
        pipeline = self.redis.pipeline(transaction=False)
        for key in keys:
            pipeline.set(key, self.own_lease, nx=True, px=round(self.lease_seconds * 1000))
            pipeline.get(key)
        # Errors are returned: a key may hold a list, and a Redis that accepts no writes has hits.
        replies = await self.ask(pipeline.execute, False) or []
        return dict(zip(keys, replies[1::2], strict=False))

    async def store(self, values: dict[bytes, bytes]) -> int:
        """Stores values in one round trip, and returns how many were stored."""
        pipeline = self.redis.pipeline(transaction=False)
        for key, value in values.items():
            pipeline.set(key, value, px=round(self.ttl_seconds * 1000))
        replies = await self.ask(pipeline.execute, False) or []
        return int(replies.count(True))

    async def ask(self, command: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Returns the reply of Redis; None if it is late, fails or is being left alone."""
        loop = asyncio.get_running_loop()
        if loop.time() < self.resumes_at:
            return None
        try:
            async with asyncio.timeout(self.deadline_seconds):
                return await command(*arguments)
        except (RedisError, TimeoutError) as error:
            if loop.time() >= self.resumes_at:
                logger.warning("Redis is left alone for %g s: %r", PAUSE_SECONDS, error)
            self.resumes_at = loop.time() + PAUSE_SECONDS
            return None

    def valid(self, contents: dict[bytes, Content]) -> dict[bytes, bytes]:
        """Returns those contents that are values."""
        return {
            key: content
            for key, content in contents.items()
            if isinstance(content, bytes) and len(content) == self.value_bytes
        }

    def is_leased(self, content: Content) -> bool:
        """Tells whether another process computes the value of a key with this content."""
        is_lease = isinstance(content, bytes) and content.startswith(LEASE)
        return is_lease and content != self.own_lease

    async def state(self) -> State:
        """Returns the counts of this process and of Redis."""
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.dbsize()
        pipeline.info("memory")
        pipeline.info("stats")
        replies = await self.ask(pipeline.execute)
        if replies is None:
            return State(**self.counts)
        keys, memory, stats = replies
        return State(
            **self.counts,
            keys=keys,
            bytes=memory["used_memory"],
            max_bytes=memory["maxmemory"],
            evicted=stats["evicted_keys"],
            expired=stats["expired_keys"],
        )
