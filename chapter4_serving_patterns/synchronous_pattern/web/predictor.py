"""Calls predictor: one deadline for all parts of a call, and one second try within it."""

import asyncio
from collections.abc import Sized
from http import HTTPStatus
from typing import TypeVar

from aiohttp import (
    ClientConnectionError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from pydantic import BaseModel, ValidationError

from .schema import Labels, Refusal

# A valid response is much smaller.
MAX_RESPONSE_BYTES = 1_000_000
# Less than the 65 s after which predictor closes an idle connection.
KEEP_ALIVE_SECONDS = 60.0
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}

Form = TypeVar("Form", bound=BaseModel)


class TooManyPredictionsError(Exception):
    """As many calls are under way as are allowed."""


class PredictorError(Exception):
    """There is no prediction, because the response of predictor is invalid."""

    status = HTTPStatus.BAD_GATEWAY
    # For the log, without anything that a caller has sent.
    reason = "the response of predictor is invalid"


class PredictionLateError(PredictorError):
    """There is no prediction within the deadline."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    reason = "no prediction in time"


class PredictorGoneError(PredictorError):
    """There is no prediction, because predictor is out of reach or overloaded."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    reason = "predictor is out of reach or overloaded"


class RowsRefusedError(PredictorError):
    """There is no prediction, because predictor refuses these rows."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    reason = "predictor refuses the rows"


class Predictor:
    """A pool of connections to predictor."""

    def __init__(self, url: str, deadline_seconds: float, most_at_once: int) -> None:
        self.url = url.rstrip("/")
        self.deadline_seconds = deadline_seconds
        self.most_at_once = most_at_once
        self.under_way = 0
        self.session = ClientSession(
            connector=TCPConnector(
                limit=most_at_once,
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

    async def close(self) -> None:
        await self.session.close()

    async def predict(self, body: bytes, rows: int) -> list[str]:
        """Returns the label of every row of a body.

        Raises:
            TooManyPredictionsError, PredictorError: as in `ask`.
        """
        answer = await self.ask("/predict/label", Labels, body)
        require_one_for_each(answer.prediction, rows)
        return answer.prediction

    async def ask(self, path: str, form: type[Form], body: bytes | None = None) -> Form:
        """Returns what predictor responds to a GET, or to a POST if there is a body.

        Raises:
            TooManyPredictionsError: too many calls are under way.
            PredictorError: there is no response of this form within the deadline.
        """
        if self.under_way >= self.most_at_once:
            raise TooManyPredictionsError(f"more than {self.most_at_once} predictions at once")
        self.under_way += 1
        try:
            async with asyncio.timeout(self.deadline_seconds) as limit:
                status, content = await self.fetch(path, body, limit.when() or 0.0)
        except TimeoutError:
            within = f"within {self.deadline_seconds:g} s"
            raise PredictionLateError(f"no prediction {within}") from None
        except ClientConnectionError:
            raise PredictorGoneError("predictor is out of reach") from None
        except ClientError:
            raise PredictorError("predictor did not finish its response") from None
        finally:
            self.under_way -= 1
        return checked(form, status, content)

    async def fetch(self, path: str, body: bytes | None, deadline: float) -> tuple[int, bytes]:
        """Returns status and content, from a second connection if the first one fails."""
        try:
            response = await self.send(path, body, deadline)
        except ClientConnectionError:
            # Refused, or just closed by predictor. No response has begun, and a prediction has no
            # side effects, so it may be requested again.
            response = await self.send(path, body, deadline)
        async with response:
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_RESPONSE_BYTES:
                    raise PredictorError("the response of predictor is too large")
            return response.status, content

    async def send(self, path: str, body: bytes | None, deadline: float) -> ClientResponse:
        """Sends a request and returns the response when its head is there."""
        return await self.session.request(
            "GET" if body is None else "POST",
            f"{self.url}{path}",
            data=body,
            headers=self.headers(deadline),
            allow_redirects=False,
        )

    def headers(self, deadline: float) -> dict[str, str]:
        """Returns the header that says how much time is left."""
        left_seconds = max(0.0, deadline - asyncio.get_running_loop().time())
        return {"x-deadline-ms": f"{left_seconds * 1000:.0f}"}


def checked(form: type[Form], status: int, content: bytes) -> Form:
    """Returns the content in this form, or raises the error that the response stands for."""
    try:
        match status:
            case HTTPStatus.OK:
                return form.model_validate_json(content)
            case HTTPStatus.UNPROCESSABLE_ENTITY:
                raise RowsRefusedError(Refusal.model_validate_json(content).detail)
            case HTTPStatus.GATEWAY_TIMEOUT:
                raise PredictionLateError("predictor was not free in time")
            case HTTPStatus.SERVICE_UNAVAILABLE:
                raise PredictorGoneError("predictor accepts no more requests")
            case _:
                raise PredictorError(f"predictor responded with status {status}")
    except ValidationError:
        raise PredictorError("the response of predictor has another form") from None


def require_one_for_each(prediction: Sized, rows: int) -> None:
    if len(prediction) != rows:
        raise PredictorError(f"predictor has {len(prediction)} predictions for {rows} rows")
