"""Asks all services at the same time; the answers that are there by the deadline are the answer."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import ClientSession

from .calls import Reply, Service, ask, probe

# With a service missing, a label needs at least this probability from its own service.
LEAST_PROBABILITY = 0.5


async def ask_all(
    session: ClientSession,
    services: Sequence[Service],
    body: bytes | None,
    rows: int,
    deadline_seconds: float,
) -> list[Reply]:
    """Returns a reply for each service, in their order, at the deadline at the latest."""
    async with aclosing(as_they_come(session, services, body, rows, deadline_seconds)) as replies:
        found = {reply.service: reply async for reply in replies}
    return [found[service.name] for service in services]


def as_they_come(
    session: ClientSession,
    services: Sequence[Service],
    body: bytes | None,
    rows: int,
    deadline_seconds: float,
) -> AsyncGenerator[Reply, None]:
    """Yields the reply of each service when it is there, and of the others at the deadline."""
    calls = {service.name: ask(session, service, body, rows) for service in services}
    return at_once(calls, deadline_seconds)


async def states(
    session: ClientSession, services: Sequence[Service], path: str, deadline_seconds: float
) -> dict[str, str]:
    """Returns "ok" for each service that responds to a path with 200, and why others do not."""
    calls = {service.name: probe(session, service, path) for service in services}
    async with aclosing(at_once(calls, deadline_seconds)) as replies:
        found = {reply.service: reply.reason or "ok" async for reply in replies}
    return {service.name: found[service.name] for service in services}


async def at_once(
    calls: Mapping[str, Coroutine[Any, Any, Reply]], deadline_seconds: float
) -> AsyncGenerator[Reply, None]:
    """Makes all calls at the same time, and cancels those that are late."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    names = {asyncio.create_task(call): name for name, call in calls.items()}
    waiting = {*names}
    try:
        while waiting:
            left_seconds = max(0.0, began + deadline_seconds - loop.time())
            done, waiting = await asyncio.wait(
                waiting, timeout=left_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                yield task.result()
            if not done:
                break
    finally:
        for task in waiting:
            task.cancel()
        # Until then, their connections are in use.
        await asyncio.gather(*waiting, return_exceptions=True)
    for task in waiting:
        reason = f"no answer within {deadline_seconds:g} seconds"
        yield Reply(names[task], None, reason, loop.time() - began)


def labels_of(replies: Sequence[Reply]) -> list[str | None]:
    """Returns the most probable label of each row, and None where it would be a guess."""
    columns = {reply.service: reply.prediction for reply in replies if reply.prediction is not None}
    least = 0.0 if len(columns) == len(replies) else LEAST_PROBABILITY
    labels: list[str | None] = []
    for row in zip(*columns.values(), strict=True):
        own = {name: pair[1] for name, pair in zip(columns, row, strict=True)}
        best = max(own, key=own.__getitem__)
        labels.append(best if own[best] >= least else None)
    return labels
