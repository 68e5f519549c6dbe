"""Bounds the memory of lists and pages: how many rows one holds, and how many are made at once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, NamedTuple

from fastapi import Depends, HTTPException, Query, Request

from .settings import Settings

settings = Settings()
# So few, because each may hold what schema.py allows, and slow readers keep 64 lists in memory.
MOST_ROWS = 25


class Part(NamedTuple):
    """How many rows are asked for, and how many come before them."""

    limit: int
    offset: int


async def one_of_few(request: Request) -> AsyncIterator[None]:
    """Waits until few other lists are being put together, which is what takes memory.

    Raises:
        HTTPException: it takes too long, as it does while the database does not answer.
    """
    lists: asyncio.Semaphore = request.app.state.lists
    try:
        async with asyncio.timeout(settings.list_wait_seconds):
            await lists.acquire()
    except TimeoutError:
        raise HTTPException(503, "too many lists at once", {"retry-after": "1"}) from None
    try:
        yield
    finally:
        lists.release()


# Until the answer is complete and not until it is sent, which a slow reader would draw out.
OneOfFew = Depends(one_of_few, scope="function")


def part_of(
    _: Annotated[None, OneOfFew],
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = MOST_ROWS,
    offset: Annotated[int, Query(ge=0, le=1_000_000_000)] = 0,
) -> Part:
    """Reads which part of a list is asked for."""
    return Part(limit, offset)


PartOf = Annotated[Part, Depends(part_of)]
