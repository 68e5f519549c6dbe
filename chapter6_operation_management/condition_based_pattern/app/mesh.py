"""Sends requests to the mesh, where the header `target` decides which model gets them."""

import asyncio
from http import HTTPStatus

from aiohttp import ClientConnectionError, ClientError, ClientSession, ClientTimeout, DummyCookieJar
from fastapi import Response

# Less than the 65 s after which a server closes an idle connection.
KEEP_ALIVE_SECONDS = 60.0
HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
# The responses of a model, and those of the mesh if a model is away or late.
PASSED_ON = {
    HTTPStatus.OK,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class NoResponseError(Exception):
    """There is no response that can be passed on."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Mesh:
    """A pool of connections to the mesh."""

    def __init__(self, url: str, deadline_seconds: float) -> None:
        self.url = url.rstrip("/")
        self.deadline_seconds = deadline_seconds
        self.session = ClientSession(
            cookie_jar=DummyCookieJar(),
            headers=HEADERS,
            # There is one deadline for all phases instead.
            timeout=ClientTimeout(),
        )

    async def close(self) -> None:
        await self.session.close()

    async def ask(self, path: str, target: str, body: bytes | None) -> Response:
        """Returns the response to a GET, or to a POST if there is a body.

        Raises:
            NoResponseError: the mesh is out of reach or late, or its response is no model's.
        """
        method = "GET" if body is None else "POST"
        try:
            async with (
                asyncio.timeout(self.deadline_seconds),
                self.session.request(
                    method, f"{self.url}{path}", data=body, headers={"target": target}
                ) as response,
            ):
                content = await response.read()
        except TimeoutError:
            within = f"no response within {self.deadline_seconds:g} s"
            raise NoResponseError(HTTPStatus.GATEWAY_TIMEOUT, within) from None
        except ClientConnectionError:
            gone = "the mesh is out of reach"
            raise NoResponseError(HTTPStatus.SERVICE_UNAVAILABLE, gone) from None
        except ClientError:
            cut = "the mesh did not finish its response"
            raise NoResponseError(HTTPStatus.BAD_GATEWAY, cut) from None
        if response.status not in PASSED_ON:
            status = f"the mesh responded with status {response.status}"
            raise NoResponseError(HTTPStatus.BAD_GATEWAY, status)
        names = {"x-model", "retry-after"} & {name.lower() for name in response.headers}
        headers = {name: response.headers[name] for name in names}
        return Response(content, response.status, headers, media_type=response.content_type)
