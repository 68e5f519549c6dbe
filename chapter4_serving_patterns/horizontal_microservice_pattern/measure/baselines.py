"""The controls: the proxy without one of its mechanisms, which `ARM` names."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any

import httpx
from aiohttp import ClientSession
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from ..proxy import calls, fan_out, main, tracing
from ..proxy.calls import HEADERS, Reply, Service

Calls = Mapping[str, Coroutine[Any, Any, Reply]]


async def in_sequence(calls: Calls, _: float) -> AsyncGenerator[Reply, None]:
    """Asks one service after the other."""
    for call in calls.values():
        yield await call


async def gathered(calls: Calls, _: float) -> AsyncGenerator[Reply, None]:
    """Waits for all services, however long it takes, and fails if one of them does."""
    for reply in await asyncio.gather(*calls.values()):
        if reply.reason:
            raise RuntimeError(reply.reason)
        yield reply


def with_httpx() -> Callable[..., Coroutine[Any, Any, tuple[int, bytes]]]:
    """Makes the same calls with httpx, from one pool, too."""
    client = httpx.AsyncClient(headers=HEADERS, timeout=httpx.Timeout(None), trust_env=False)

    async def fetch(
        _: ClientSession, service: Service, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        method = "GET" if body is None else "POST"
        response = await client.request(method, f"{service.url}{path}", content=body)
        return response.status_code, response.content

    return fetch


def sent_at_once(exporter: SpanExporter, **_: Any) -> SimpleSpanProcessor:
    """Sends each span before the request goes on."""
    return SimpleSpanProcessor(exporter)


def best_of_the_rest(replies: Sequence[Reply]) -> list[str | None]:
    """Guesses: the label of the service that is least unsure, whoever is missing."""
    return fan_out.labels_of([reply for reply in replies if reply.prediction is not None])


match os.environ.get("ARM"):
    case "in_sequence":
        vars(fan_out)["at_once"] = in_sequence
    case "gathered":
        vars(fan_out)["at_once"] = gathered
    case "httpx":
        vars(calls)["fetch"] = with_httpx()
    case "sent_at_once":
        vars(tracing)["BatchSpanProcessor"] = sent_at_once

app = main.app
