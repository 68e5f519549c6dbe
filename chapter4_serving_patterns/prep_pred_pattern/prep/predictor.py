"""Calls pred in the Open Inference Protocol: one binary tensor with all pictures of a request."""

import asyncio
import json
import math
from http import HTTPStatus
from typing import Any

import numpy as np
from aiohttp import (
    ClientConnectionError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from numpy.typing import NDArray

# A valid response is much smaller.
MAX_RESPONSE_BYTES = 1_000_000
# Less than the 65 s after which pred closes an idle connection.
KEEP_ALIVE_SECONDS = 60.0
# Where a host is gone, a network may leave a connection open until the deadline.
CONNECT_SECONDS = 2.0
# The number of bytes of a body that are JSON; the rest are tensors.
HEADER_LENGTH = "Inference-Header-Content-Length"

Answer = tuple[int, str, bytes]


class PredError(Exception):
    """There is no prediction, because the response of pred is invalid."""

    status = HTTPStatus.BAD_GATEWAY
    # For the log, without anything that a caller has sent.
    reason = "the response of pred is invalid"


class PredLateError(PredError):
    """There is no prediction within the deadline."""

    status = HTTPStatus.GATEWAY_TIMEOUT
    reason = "no response from pred in time"


class PredGoneError(PredError):
    """There is no prediction, because pred is out of reach or overloaded."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    reason = "pred is out of reach or overloaded"


class OtherPairError(PredError):
    """There is no prediction, because pred has a model of another training."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    reason = "pred belongs to another pair"


class Predictor:
    """A pool of connections to pred."""

    def __init__(
        self, url: str, model: str, pair: str | None, deadline_seconds: float, most_at_once: int
    ) -> None:
        """Without a pair, any model is accepted."""
        self.url = url.rstrip("/")
        self.path = f"/v2/models/{model}"
        self.pair = pair
        self.deadline_seconds = deadline_seconds
        self.session = ClientSession(
            connector=TCPConnector(
                limit=most_at_once,
                keepalive_timeout=KEEP_ALIVE_SECONDS,
                # A restarted service may have another address.
                ttl_dns_cache=1,
            ),
            cookie_jar=DummyCookieJar(),
            headers={"accept-encoding": "identity"},
            # There is one deadline for everything, but a host that is gone should not use it up.
            timeout=ClientTimeout(connect=CONNECT_SECONDS),
            auto_decompress=False,
        )

    async def close(self) -> None:
        await self.session.close()

    async def predict(self, tensors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the probabilities [pictures, labels] of tensors [pictures, 3, side, side].

        Raises:
            PredError: there is no valid response of the same pair within the deadline.
        """
        header = self.header_of(tensors)
        body = b"".join([header, tensors.tobytes()])
        status, length, content = await self.ask(
            f"{self.path}/infer", body, {HEADER_LENGTH: str(len(header))}
        )
        if status != HTTPStatus.OK:
            if status == HTTPStatus.BAD_REQUEST:
                await self.require_pair()
            raise PredError(f"pred responded with status {status}{reason_in(content)}")
        return probabilities_in(content, length, len(tensors))

    def header_of(self, tensors: NDArray[np.float32]) -> bytes:
        """Returns the JSON before the tensor; the pair is in it, because pred may be replaced."""
        inputs = {
            "name": "pictures",
            "datatype": "FP32",
            "shape": tensors.shape,
            "parameters": {"binary_data_size": tensors.nbytes},
        }
        parameters = {"binary_data_output": True} | ({"pair": self.pair} if self.pair else {})
        return json.dumps({"inputs": [inputs], "parameters": parameters}).encode()

    async def require_pair(self) -> None:
        """Asks pred for its pair; while it is overloaded, it is not known to be another one.

        Raises:
            PredError: pred is out of reach, or belongs to another pair.
        """
        try:
            status, _, content = await self.ask(self.path)
        except OverloadedError:
            return
        try:
            described = json.loads(content) if status == HTTPStatus.OK else {}
            found = described["parameters"]["pair"] if self.pair else None
        except (ValueError, KeyError, TypeError):
            found = "none"
        if found != self.pair:
            own = "this preprocessing belongs to the pair"
            raise OtherPairError(f"{own} {self.pair}, the model of pred to {str(found)[:64]}")

    async def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Returns status, length of the header and content of a response.

        Raises:
            PredError: there is no response within the deadline, or pred is overloaded.
        """
        try:
            async with asyncio.timeout(self.deadline_seconds):
                answer = await self.fetch(path, body, headers)
        except ClientConnectionError:
            # Also a timeout, but of the connection.
            raise PredGoneError("pred is out of reach") from None
        except TimeoutError:
            raise PredLateError(
                f"no response from pred within {self.deadline_seconds:g} s"
            ) from None
        except ClientError:
            raise PredError("pred did not finish its response") from None
        if answer[0] == HTTPStatus.SERVICE_UNAVAILABLE:
            raise OverloadedError("pred accepts no more requests")
        return answer

    async def fetch(self, path: str, body: bytes | None, headers: dict[str, str] | None) -> Answer:
        """Returns a whole response, from a second connection if the first one fails."""
        try:
            response = await self.send(path, body, headers)
        except ClientConnectionError:
            # Refused, or just closed by pred. No response has begun, and a prediction has no side
            # effects, so it may be requested again.
            response = await self.send(path, body, headers)
        async with response:
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_RESPONSE_BYTES:
                    raise PredError("the response of pred is too large")
            return response.status, response.headers.get(HEADER_LENGTH, ""), content

    async def send(
        self, path: str, body: bytes | None, headers: dict[str, str] | None
    ) -> ClientResponse:
        """Sends a request and returns the response when its head is there."""
        return await self.session.request(
            "GET" if body is None else "POST",
            f"{self.url}{path}",
            data=body,
            headers=headers,
            allow_redirects=False,
        )


class OverloadedError(PredGoneError):
    """pred is there, but accepts no more requests."""


def reason_in(content: bytes) -> str:
    """Returns the reason in an error of the protocol, if there is one."""
    try:
        return f": {str(json.loads(content)['error'])[:200]}"
    except (ValueError, KeyError, TypeError):
        return ""


def probabilities_in(content: bytes, length: str, pictures: int) -> NDArray[np.float32]:
    """Returns the first tensor of a response.

    Raises:
        PredError: it is not a finite number for each label of each picture.
    """
    try:
        header: dict[str, Any] = json.loads(content[: int(length)])
        output = header["outputs"][0]
        rows, labels = output["shape"]
        size = output["parameters"]["binary_data_size"]
        values = np.frombuffer(content, np.float32, size // 4, int(length))
        table = values.reshape(rows, labels)
    except (ValueError, LookupError, TypeError):
        raise PredError("the response of pred has another form") from None
    if rows != pictures or not math.isfinite(np.vdot(table, table)):
        raise PredError(f"pred has no finite prediction for each of {pictures} pictures")
    return table
