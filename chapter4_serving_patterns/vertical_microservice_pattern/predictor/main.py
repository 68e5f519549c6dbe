# Copied from chapter4_serving_patterns/horizontal_microservice_pattern/predictor/main.py with Tells one iris from the others->Serves the model of one stage, whose label is the name of the service->whose stage is the name of the service, labels[1]->metadata["stage"]
"""Serves the model of one stage; its spans are below those of the proxy."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from . import server, tracing


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model, whose stage is the name of the service."""
    async with server.lifespan(app):
        with tracing.set_up(app.state.model.metadata["stage"]):
            yield


app = server.app
app.router.lifespan_context = lifespan
app.add_middleware(tracing.Traced)
