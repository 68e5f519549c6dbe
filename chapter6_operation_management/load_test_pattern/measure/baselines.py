"""A server that does nothing, to measure load generators with."""

from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

BODY = b'{"prediction":[[]]}'


async def null(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answers every request with the same bytes."""
    if scope["type"] == "http":
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", b"%d" % len(BODY))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": BODY})
