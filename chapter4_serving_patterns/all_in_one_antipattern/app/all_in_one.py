"""Serves all three models in one process, each under a path of its own."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from .docs import add_docs
from .main import build
from .schema import UNAVAILABLE
from .settings import Settings

MODELS = {name: build(Settings().model_directory / name) for name in ("iris", "wine", "digits")}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Starts the three applications, which Starlette does not do for mounted ones."""
    async with AsyncExitStack() as stack:
        for one in MODELS.values():
            await stack.enter_async_context(one.router.lifespan_context(one))
        yield


app = FastAPI(
    title="all_in_one_antipattern",
    description=__doc__,
    version="0.1.0",
    lifespan=lifespan,
    docs_url=None,
    redoc_url=None,
    # Without this, FastAPI looks for a tracer on every request.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
add_docs(app)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready() -> dict[str, str]:
    """All three models are loaded; the port is closed until the slowest one is."""
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata() -> dict[str, Any]:
    """Describes every model of this process."""
    return {name: one.state.model.metadata for name, one in MODELS.items()}


for name, one in MODELS.items():
    app.mount(f"/{name}", one)
