"""Asks the models in order: what one has answered for a row chooses the one that is asked next."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, NamedTuple

from aiohttp import ClientSession
from pydantic import TypeAdapter

from .calls import Reply, Service, ask, probe

# The labels of `orientation`, in their order: each is the stage that reads such rows.
READERS = ("upright", "turned")
# How many probabilities each stage answers with.
LABELS = {"orientation": len(READERS), "upright": 10, "turned": 10, "second": 10}

Row = list[float]
# Some rows of a request, by their number.
Rows = dict[int, Row]
write = TypeAdapter(dict[str, list[Row]]).dump_json


class Verdict(NamedTuple):
    """The probabilities of a row, if any, and the stages that have answered for it."""

    prediction: Row | None
    stages: list[str]


async def run(
    session: ClientSession,
    services: Mapping[str, Service],
    rows: list[Row],
    min_confidence: float,
    until: float,
) -> tuple[list[Verdict], list[Reply]]:
    """Returns what is known of each row at the deadline, and the reply of each stage asked."""
    replies: list[Reply] = []
    stages: list[list[str]] = [[] for _ in rows]

    async def answers(stage: str, inputs: Rows) -> Rows:
        if not inputs:
            return {}
        reply = await ask_stage(session, services[stage], [*inputs.values()], until)
        replies.append(reply)
        found = dict(zip(inputs, reply.prediction or [], strict=False))
        for number in found:
            stages[number].append(stage)
        return found

    ways = await answers("orientation", dict(enumerate(rows)))
    reader = {number: READERS[way.index(max(way))] for number, way in ways.items()}
    upright, turned = await asyncio.gather(
        *(answers(name, {n: rows[n] for n in reader if reader[n] == name}) for name in READERS)
    )
    predictions = upright | turned
    unsure = {
        number: [*rows[number], ways[number][1], *prediction]
        for number, prediction in predictions.items()
        if max(prediction) < min_confidence
    }
    predictions |= await answers("second", unsure)
    return [Verdict(predictions.get(n), taken) for n, taken in enumerate(stages)], replies


async def ask_stage(
    session: ClientSession, service: Service, rows: list[Row], until: float
) -> Reply:
    """Asks a stage once for all of its rows, unless the deadline has passed."""
    body = write({"data": rows})
    return await within(until, service, ask(session, service, body, len(rows)))


async def states(
    session: ClientSession, services: Mapping[str, Service], path: str, until: float
) -> dict[str, str]:
    """Returns "ok" for each stage that responds to a path with 200, and why others do not."""
    probes = [within(until, each, probe(session, each, path)) for each in services.values()]
    return {reply.service: reply.reason or "ok" for reply in await asyncio.gather(*probes)}


async def within(until: float, service: Service, call: Coroutine[Any, Any, Reply]) -> Reply:
    """Makes a call, and cancels it at the deadline; after it, the call does not begin."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    if began >= until:
        call.close()
        return Reply(service.name, None, "not asked: the deadline had passed", 0.0)
    try:
        async with asyncio.timeout_at(until):
            return await call
    except TimeoutError:
        return Reply(service.name, None, "no answer by the deadline", loop.time() - began)
