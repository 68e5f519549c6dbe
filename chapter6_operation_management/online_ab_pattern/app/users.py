"""Simulates users: each asks, accepts the answer or not by chance, and asks again."""

import asyncio
import logging
import sys
from collections import Counter
from http import HTTPStatus
from typing import Any

import numpy as np
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from .settings import Settings

log = logging.getLogger("users")

BODY = {"data": [[5.1, 3.5, 1.4, 0.2]]}
AT_ONCE = 8
DEADLINE_SECONDS = 10.0


async def ask(session: ClientSession, path: str, user: str, body: Any) -> dict[str, Any] | None:
    """Returns the answer; None if there is none, or an error."""
    try:
        async with session.post(path, json=body, headers={"x-user-id": user}) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            is_answered = response.status in (HTTPStatus.OK, HTTPStatus.ACCEPTED)
            return answer if is_answered else None
    except (ClientError, TimeoutError, ValueError):
        return None


async def visit(session: ClientSession, number: int, rates: dict[str, float]) -> str:
    """Returns which version the user has had."""
    user = f"simulated-{number}"
    first = await ask(session, "/predict", user, BODY)
    # The same user makes the same choice in every simulation.
    if first and np.random.default_rng(number).random() < rates.get(first["mode"], 0):
        job = {"job_id": first["job_id"], "event_id": "1"}
        await ask(session, "/event", user, job | {"event": "accepted", "value": "simulated"})
    second = await ask(session, "/predict", user, BODY)
    if first is None or second is None:
        return "without an answer"
    return first["mode"] if first["mode"] == second["mode"] else "both"


async def simulate(settings: Settings) -> Counter[str]:
    """Returns how many users have had which version."""
    rates = {"iris_svc": settings.simulated_rate_svc, "iris_rf": settings.simulated_rate_rf}
    async with ClientSession(
        settings.mesh_url,
        connector=TCPConnector(limit=AT_ONCE),
        timeout=ClientTimeout(total=DEADLINE_SECONDS),
    ) as session:
        queue = iter(range(settings.simulated_users))

        async def come() -> Counter[str]:
            return Counter([await visit(session, number, rates) for number in queue])

        return sum(await asyncio.gather(*[come() for _ in range(AT_ONCE)]), Counter[str]())


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    settings = Settings()
    seen = asyncio.run(simulate(settings))
    names = ("iris_svc", "iris_rf", "both", "without an answer")
    counts = ", ".join(f"{seen[name]} {name}" for name in names)
    log.info("%d simulated users: %s", settings.simulated_users, counts)


if __name__ == "__main__":
    main()
