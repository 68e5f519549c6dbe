"""Each window of predictions is compared with a baseline, and a change raises an alert."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from . import logged
from .logged import app
from .metrics import MODEL, CountedLog, CountRequests

__all__ = ["app"]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Counts the predictions of the API that logs them."""
    async with logged.lifespan(app):
        described = app.state.model.metadata
        MODEL.labels(described["name"], described["version"], described["sha256"]).set(1)
        yield


async def metrics(_: Request) -> Response:
    return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})


logged.Log = CountedLog  # type: ignore[attr-defined]
app.description = __doc__ or ""
app.router.lifespan_context = lifespan
app.add_route("/metrics", metrics, include_in_schema=False)
app.middleware_stack = CountRequests(app.middleware_stack or app.build_middleware_stack())
