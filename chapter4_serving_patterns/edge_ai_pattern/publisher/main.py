"""The model runs on the device: its answers need no network, and nothing leaves it."""

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .docs import add_docs
from .files import File, headers_of, read_app, read_channel, read_releases
from .route import JsonRoute, refuse_invalid
from .settings import Settings

# The page may load and call nothing but this publisher; only WebAssembly may be compiled.
SECURITY = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# Of so many devices the publisher remembers which version they had when they last asked.
MOST_DEVICES = 100_000

Device = Annotated[str, Query(pattern=r"^[0-9a-f]{32}$", examples=["0" * 32])]
Version = Annotated[int, Query(ge=0, le=1_000_000)]

settings = Settings()


class Fleet(BaseModel):
    """How many devices had each version when they last asked; 0 is none yet."""

    versions: dict[int, int]


class Refusal(BaseModel):
    """Why a request was rejected."""

    detail: str | list[dict[str, Any]]


class Secured:
    """Adds the headers that a browser obeys, where a response has none of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_secured)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Reads everything that is published before the port opens."""
    models = settings.model_directory
    app.state.files = read_app(settings.web_directory, models) | read_releases(models)
    app.state.channel = read_channel(models, settings.release)
    app.state.devices = OrderedDict[str, int]()
    yield


app = FastAPI(
    title="edge_ai_pattern",
    description=__doc__,
    version="0.1.0",
    lifespan=lifespan,
    docs_url=None,
    redoc_url=None,
    # Without this, FastAPI looks for a tracer on every request.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.add_middleware(Secured)
app.router.route_class = JsonRoute
app.exception_handler(RequestValidationError)(refuse_invalid)
add_docs(app)


@app.get("/fleet", tags=["releases"])
async def fleet(request: Request) -> Fleet:
    """Counts the versions of the devices that have asked."""
    return Fleet(versions=dict(sorted(Counter(request.app.state.devices.values()).items())))


@app.get("/channel", tags=["releases"], responses={422: {"model": Refusal}})
async def channel(request: Request, device: Device, version: Version) -> Response:
    """Returns the signed release for devices, and remembers which version this one has."""
    devices: OrderedDict[str, int] = request.app.state.devices
    devices[device] = version
    devices.move_to_end(device)
    if len(devices) > MOST_DEVICES:
        devices.popitem(last=False)
    return answer(request, request.app.state.channel)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"])
async def ready() -> dict[str, str]:
    """Reports that everything is published; the port is closed until it is read."""
    return {"status": "ready"}


async def file(request: Request) -> Response:
    """Returns a file of the page or of a release."""
    found: File | None = request.app.state.files.get(request.url.path)
    if found is None:
        raise HTTPException(404, "there is no such file")
    return answer(request, found)


def answer(request: Request, found: File) -> Response:
    accepted, tags = (
        request.headers.get(name, "") for name in ("accept-encoding", "if-none-match")
    )
    status, content, headers = headers_of(found, accepted, tags)
    return Response(content, status, headers)


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
app.add_route("/{path:path}", file, methods=["GET"], include_in_schema=False)
