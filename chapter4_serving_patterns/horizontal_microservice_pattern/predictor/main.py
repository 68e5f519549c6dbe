"""Tells one iris from the others; its spans are below those of the proxy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from . import server, tracing


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model, whose label is the name of the service."""
    async with server.lifespan(app):
        with tracing.set_up(app.state.model.labels[1]):
            yield


app = server.app
app.router.lifespan_context = lifespan
app.add_middleware(tracing.Traced)
