"""Bounds the memory of lists and pages: rows per response, and responses built at once."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, NamedTuple

from fastapi import Depends, HTTPException, Query, Request

from .guard import count_refusal
from .settings import Settings

settings = Settings()
# Each row may be as large as schema.py allows, and slow readers can keep 64 lists in memory.
MAX_ROWS = 25


class Paging(NamedTuple):
    """How many rows to return, and how many to skip."""

    limit: int
    offset: int


async def list_slot(request: Request) -> AsyncIterator[None]:
    """Limits how many lists are built at once, because building them takes the memory.

    Raises:
        HTTPException: no slot became free in time, for example because the database is down.
    """
    slots: asyncio.Semaphore = request.app.state.list_slots
    try:
        async with asyncio.timeout(settings.list_wait_seconds):
            await slots.acquire()
    except TimeoutError:
        detail = "too many lists at once"
        count_refusal(503, detail)
        raise HTTPException(503, detail, {"retry-after": "1"}) from None
    try:
        yield
    finally:
        slots.release()


# The slot is freed when the response is built, not when it is sent: a slow reader would hold it.
ListSlot = Depends(list_slot, scope="function")


def paging_of(
    _: Annotated[None, ListSlot],
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = MAX_ROWS,
    offset: Annotated[int, Query(ge=0, le=1_000_000_000)] = 0,
) -> Paging:
    return Paging(limit, offset)


PagingQuery = Annotated[Paging, Depends(paging_of)]
