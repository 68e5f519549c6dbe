"""Serves the files of the model store over HTTP, as a bucket would."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .settings import Settings


async def live(_: Request) -> JSONResponse:
    """The process lives, and it is always ready because its files are part of the image."""
    return JSONResponse({"status": "ok", "health": "ok"})


app = Starlette(
    routes=[
        Route("/health", live),
        Route("/ready", live),
        Mount("/", StaticFiles(directory=Settings().store_directory)),
    ]
)
