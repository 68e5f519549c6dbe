"""Lets many callers wait for their jobs with one call to Redis every 20 milliseconds."""

import asyncio
import signal
from contextlib import suppress
from functools import partial
from typing import Any

from redis import RedisError
from redis.asyncio import Redis

from .jobs import record_of

ROUND_SECONDS = 0.02


class Waiting:
    """The callers who wait at present, and the task that looks for their jobs."""

    def __init__(self, redis: Redis, most: int, deadline_seconds: float) -> None:
        """Lets at most `most` callers wait; the deadline is for one call to Redis."""
        self.redis = redis
        self.most = most
        self.deadline_seconds = deadline_seconds
        self.records: dict[asyncio.Future[None], str] = {}
        self.rounds: asyncio.Task[None] | None = None
        self.over = False

    def end_with_the_process(self) -> None:
        """Lets nobody wait after SIGTERM: uvicorn would let each of these requests finish."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if callable(stop := signal.getsignal(number)):
                signal.signal(number, partial(self.end, stop))

    def end(self, stop: Any, *arguments: Any) -> None:
        self.over = True
        stop(*arguments)

    async def until_finished(self, job_id: str, seconds: float) -> None:
        """Waits until the job is finished or unknown, but no longer than this.

        It does not wait where too many callers do, or where Redis does not respond: the caller
        then gets what Redis says at once.
        """
        if self.over or len(self.records) >= self.most:
            return
        caller = asyncio.get_running_loop().create_future()
        self.records[caller] = record_of(job_id)
        if self.rounds is None or self.rounds.done():
            self.rounds = asyncio.create_task(self.look())
        try:
            await asyncio.wait([caller], timeout=seconds)
        finally:
            del self.records[caller]

    async def look(self) -> None:
        """Looks for the jobs of all callers, again and again while anybody waits."""
        while self.records:
            asked = dict(self.records)
            unfinished = set() if self.over else await self.unfinished(set(asked.values()))
            for caller, record in asked.items():
                if record not in unfinished and not caller.done():
                    caller.set_result(None)
            await asyncio.sleep(ROUND_SECONDS)

    async def unfinished(self, records: set[str]) -> set[str]:
        """Returns those of the records whose job is not finished; none if Redis fails."""
        names = list(records)
        with suppress(RedisError, TimeoutError):
            async with asyncio.timeout(self.deadline_seconds):
                found = await self.redis.mget(names)
            # The record of a finished job is its result, in JSON.
            return {name for name, value in zip(names, found, strict=True) if is_entry(value)}
        return set()


def is_entry(record: Any) -> bool:
    """Tells whether a record is the ID of an entry of the queue."""
    return record is not None and not record.startswith(b"{")
