"""Gives out the files of the model store over HTTP, as a bucket would."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .settings import Settings


async def answers(_: Request) -> JSONResponse:
    """The process answers; the files are part of its image."""
    return JSONResponse({"status": "ok"})


app = Starlette(
    routes=[
        Route("/health", answers),
        Route("/ready", answers),
        Mount("/", StaticFiles(directory=Settings().store_directory)),
    ]
)
