"""The controls: the proxy without one of its mechanisms, which `POST /control/NAME` chooses."""

import asyncio
from collections.abc import Mapping

from aiohttp import ClientSession
from fastapi import HTTPException

from ..proxy import main, stages
from ..proxy.calls import Reply, Service
from ..proxy.stages import LABELS, READERS, Row, Verdict, ask_stage, run

# What `second` gets if it does not wait for the others.
UNKNOWN = [1 / LABELS["orientation"], *[1 / LABELS["second"]] * LABELS["second"]]
CONFIDENCES = {"always_second": 2.0, "never_second": 0.0}

app = main.app
shipped = main.settings.min_confidence


async def run_at_once(
    session: ClientSession,
    services: Mapping[str, Service],
    rows: list[Row],
    min_confidence: float,
    until: float,
) -> tuple[list[Verdict], list[Reply]]:
    """Asks all stages for all rows at the same time."""
    inputs = dict.fromkeys(services, rows) | {"second": [[*row, *UNKNOWN] for row in rows]}
    replies = await asyncio.gather(
        *(ask_stage(session, services[name], inputs[name], until) for name in services)
    )
    found = {reply.service: reply.prediction or [] for reply in replies}
    verdicts = []
    for number, way in enumerate(found["orientation"]):
        prediction = found[READERS[way.index(max(way))]][number]
        if max(prediction) < min_confidence:
            prediction = found["second"][number]
        verdicts.append(Verdict(prediction, [*services]))
    return verdicts, replies


async def ask_or_raise(
    session: ClientSession, service: Service, rows: list[Row], until: float
) -> Reply:
    """Fails with the first stage that does."""
    reply = await ask_stage(session, service, rows, until)
    if reply.reason:
        # Not any error: uvicorn would close the connection, which costs other requests, too.
        raise HTTPException(500, reply.reason)
    return reply


@app.post("/control/{name}")
async def control(name: str) -> None:
    main.settings.min_confidence = CONFIDENCES.get(name, shipped)
    vars(stages)["run"] = run_at_once if name == "at_once" else run
    vars(stages)["ask_stage"] = ask_or_raise if name == "raises" else ask_stage
