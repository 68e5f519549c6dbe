"""Asks all services at the same time; the answers that are there by the deadline are the answer."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from http import HTTPStatus
from time import perf_counter
from typing import Annotated, Any, NamedTuple

from aiohttp import (
    ClientConnectionError,
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from pydantic import BaseModel, Field, ValidationError

from . import tracing

# Less than the 65 s after which a service closes an idle connection.
KEEP_ALIVE_SECONDS = 60.0
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
# With a service missing, a label needs at least this probability from its own service.
LEAST_PROBABILITY = 0.5

Probability = Annotated[float, Field(allow_inf_nan=False)]
Pair = tuple[Probability, Probability]


class Answer(BaseModel):
    """The probabilities of each row: that of the other irises, and that of the service's own."""

    prediction: list[Pair]


class Service(NamedTuple):
    """A predictor, whose name is its label."""

    name: str
    url: str
    max_answer_bytes: int


class Reply(NamedTuple):
    """What a service has answered; without a prediction, `reason` says why."""

    service: str
    prediction: list[Pair] | None
    reason: str
    seconds: float


def pool() -> ClientSession:
    """Opens the pool of connections to all services, which never follows where they point."""
    return ClientSession(
        connector=TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
        cookie_jar=DummyCookieJar(),
        headers=HEADERS,
        # There is one deadline for all phases instead.
        timeout=ClientTimeout(),
        auto_decompress=False,
    )


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


async def ask(session: ClientSession, service: Service, body: bytes | None, rows: int) -> Reply:
    """Returns the prediction of a service for a body or, without one, for its own sample."""
    began = perf_counter()
    prediction, reason = None, ""
    try:
        path = "/predict/test" if body is None else "/predict"
        status, content = await fetch(session, service, path, body)
        if status != HTTPStatus.OK:
            reason = f"responded with status {status}"
        elif len(content) > service.max_answer_bytes:
            reason = "the answer is too large"
        elif len(found := Answer.model_validate_json(content).prediction) != rows:
            reason = f"{len(found)} predictions for {rows} rows"
        else:
            prediction = found
    except ClientConnectionError:
        reason = "out of reach"
    except ClientError:
        reason = "did not finish its answer"
    except ValidationError:
        reason = "the answer has another form"
    return Reply(service.name, prediction, reason, perf_counter() - began)


async def probe(session: ClientSession, service: Service, path: str) -> Reply:
    began = perf_counter()
    try:
        status, _ = await fetch(session, service, path, None)
        reason = "" if status == HTTPStatus.OK else f"responded with status {status}"
    except ClientError:
        reason = "out of reach"
    return Reply(service.name, None, reason, perf_counter() - began)


async def fetch(
    session: ClientSession, service: Service, path: str, body: bytes | None
) -> tuple[int, bytes]:
    """Returns status and content, of which it reads little more than may be there."""
    try:
        response = await send(session, service, path, body)
    except ClientConnectorError:
        raise
    except ClientConnectionError:
        # A connection that was kept alive had been closed. No answer has begun, and a prediction
        # has no side effects, so it may be requested again.
        response = await send(session, service, path, body)
    async with response:
        content = b""
        async for chunk in response.content.iter_any():
            content += chunk
            if len(content) > service.max_answer_bytes:
                break
        return response.status, content


async def send(
    session: ClientSession, service: Service, path: str, body: bytes | None
) -> ClientResponse:
    """Sends a request and returns the response when its head is there."""
    return await session.request(
        "GET" if body is None else "POST",
        f"{service.url}{path}",
        data=body,
        headers=tracing.headers(),
        allow_redirects=False,
    )


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
