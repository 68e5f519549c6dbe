"""Calls one service: what it has answered within a bound of bytes, or why it has not answered."""

from collections.abc import Sequence
from http import HTTPStatus
from time import perf_counter
from typing import Annotated, NamedTuple

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
from .guard import count_refusal

# Less than the 65 s after which a service closes an idle connection.
KEEP_ALIVE_SECONDS = 60.0
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}

Probability = Annotated[float, Field(allow_inf_nan=False)]
Predictions = list[list[Probability]]


class Answer(BaseModel):
    """The probabilities of each row, one for each label of the service."""

    prediction: Predictions


class Service(NamedTuple):
    """A predictor, and what may be in its answers."""

    name: str
    url: str
    labels: int
    max_answer_bytes: int


class Reply(NamedTuple):
    """What a service has answered; without a prediction, `reason` says why."""

    service: str
    prediction: Predictions | None
    reason: str
    seconds: float


def pool() -> ClientSession:
    """Opens the pool of connections to all services, which never follows where they point."""
    return ClientSession(
        connector=TCPConnector(
            limit=0,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            # A restarted service may have another address.
            ttl_dns_cache=1,
        ),
        cookie_jar=DummyCookieJar(),
        headers=HEADERS,
        # There is one deadline for all phases instead.
        timeout=ClientTimeout(),
        auto_decompress=False,
    )


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
        elif wrong := {len(row) for row in found} - {service.labels}:
            reason = f"{min(wrong)} probabilities for {service.labels} labels"
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
    """Tells by the reason whether a service responds to a path with 200."""
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


def missing_in(replies: Sequence[Reply]) -> dict[str, str]:
    """Returns why services are missing, and counts it for the log."""
    missing = {reply.service: reply.reason for reply in replies if reply.prediction is None}
    for service, reason in missing.items():
        count_refusal(503, f"{service}: {reason}")
    return missing


def timings_of(replies: Sequence[Reply]) -> str:
    """Returns the header `Server-Timing`, which a browser draws."""
    absent = ';desc="no answer"'
    return ", ".join(
        f"{name}{absent if prediction is None else ''};dur={seconds * 1000:.1f}"
        for name, prediction, _, seconds in replies
    )
