"""Asks the models: the attempts of a model share one deadline, and there are never more."""

import asyncio
from collections.abc import Mapping
from typing import Annotated

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from pydantic import BaseModel, Field

from .guard import count_refusal
from .parameters import ModelParameters

# A valid response is much smaller.
MAX_RESPONSE_BYTES = 1_000_000
# Less than the 65 s after which a model closes an idle connection.
KEEP_ALIVE_SECONDS = 60.0
HEALTH_SECONDS = 1.0
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
# A model that is overloaded (503) must not get more to do.
TRIED_AGAIN = (500, 502, 504)

Probability = Annotated[float, Field(allow_inf_nan=False)]


class Answer(BaseModel):
    """The probabilities of each row: that of the other irises, and that of the model's own."""

    prediction: list[tuple[Probability, Probability]]


class Models:
    """One pool of connections to all models."""

    def __init__(self, urls: Mapping[str, str], most_at_once: int) -> None:
        self.urls = {name: url.rstrip("/") for name, url in urls.items()}
        self.session = ClientSession(
            # Each model has its own limit, so one that hangs takes no connection from the others.
            connector=TCPConnector(
                limit=0,
                limit_per_host=most_at_once,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                # A restarted model may have another address.
                ttl_dns_cache=1,
            ),
            cookie_jar=DummyCookieJar(),
            headers=HEADERS,
            # There is one deadline for all phases instead.
            timeout=ClientTimeout(),
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self.session.close()

    async def ask(
        self, name: str, model: ModelParameters, path: str, body: bytes | None, rows: int
    ) -> list[float] | None:
        """Returns the probability of the model's iris in each row, or None without an answer."""
        reason = ""
        try:
            async with asyncio.timeout(model.timeout_seconds):
                for _ in range(model.attempts):
                    try:
                        status, content = await self.send(name, path, body)
                    except ClientError:
                        reason = "is out of reach"
                        continue
                    if status == 200:
                        return probabilities_in(content, rows)
                    reason = f"responds with {status}"
                    if status not in TRIED_AGAIN:
                        break
        except TimeoutError:
            reason = "is late"
        except ValueError:
            reason = "responds with something else"
        count_refusal(503, f"{name} {reason}, so its fallback")
        return None

    async def send(self, name: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Sends a POST, or a GET without a body, and returns status and content."""
        method, url = "GET" if body is None else "POST", f"{self.urls[name]}{path}"
        async with self.session.request(method, url, data=body, allow_redirects=False) as response:
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_RESPONSE_BYTES:
                    raise ValueError("the response is too large")
            return response.status, content

    async def health(self, name: str) -> str:
        """Returns "ok" if the model is alive, otherwise "ng", as in the book."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                status, _ = await self.send(name, "/health", None)
        except (TimeoutError, ClientError, ValueError):
            return "ng"
        return "ok" if status == 200 else "ng"


def probabilities_in(content: bytes, rows: int) -> list[float]:
    """Reads an answer; raises a ValueError if it is not one for this many rows."""
    prediction = Answer.model_validate_json(content).prediction
    if len(prediction) != rows:
        raise ValueError(f"{len(prediction)} entries for {rows} rows")
    return [own for _, own in prediction]
