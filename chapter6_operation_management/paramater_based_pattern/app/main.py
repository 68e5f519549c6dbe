"""A file decides how models are used; a change holds from the next request, without a release."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from . import decisions
from .decisions import Decisions
from .docs import add_docs
from .models import Models
from .parameters import Followed, InForce
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, PredictRequest
from .settings import Settings

settings = Settings()
logger = logging.getLogger("uvicorn.error")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Reads the parameters before the port opens, so a wrong file never decides anything."""
    app.state.metadata = json.loads((settings.model_directory / "metadata.json").read_bytes())
    app.state.followed = Followed(settings.parameters_file, settings.model_urls.keys())
    app.state.models = Models(settings.model_urls, settings.max_requests_at_once)
    following = asyncio.create_task(app.state.followed.follow(settings.look_seconds))
    yield
    following.cancel()
    await app.state.models.close()


app = FastAPI(
    title="paramater_based_pattern",
    description=__doc__,
    version="0.1.0",
    lifespan=lifespan,
    docs_url=None,
    redoc_url=None,
    # Without this, FastAPI looks for a tracer on every request.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.router.route_class = JsonRoute
app.exception_handler(RequestValidationError)(refuse_invalid)
add_docs(app)


async def decided(request: Request, path: str, body: bytes | None, rows: int) -> Decisions:
    """Asks the models at the same time, decides by one version, and logs both."""
    models, in_force = request.app.state.models, request.app.state.followed.in_force
    asked = decisions.to_ask(in_force.values)
    calls = [models.ask(name, model, path, body, rows) for name, model in asked.items()]
    answers = dict(zip(asked, await asyncio.gather(*calls), strict=True))
    result = decisions.decide(in_force, answers, rows)
    logger.info("decided: %s", result.model_dump_json())
    return result


@app.post("/predict", tags=["prediction"], responses=REFUSALS)
async def predict(request: Request, body: PredictRequest) -> Decisions:
    """Decides for every row, and each active model, whether the row is its iris."""
    return await decided(request, "/predict", await request.body(), len(body.data))


@app.get("/parameters", tags=["parameters"], responses=UNAVAILABLE)
async def parameters(request: Request) -> InForce:
    """Shows what is in force, since when, and what is wrong with the file if it is not."""
    followed: Followed = request.app.state.followed
    return followed.in_force


@app.get("/predict/get/test", tags=["prediction"], responses=UNAVAILABLE)
async def predict_get_test(request: Request) -> Decisions:
    """Decides for the sample rows that the models have."""
    return await decided(request, "/predict/test", None, len(request.app.state.metadata["sample"]))


@app.get("/predict/post/test", tags=["prediction"], responses=UNAVAILABLE)
async def predict_post_test(request: Request) -> Decisions:
    """Decides for the sample rows that the proxy sends."""
    sample = request.app.state.metadata["sample"]
    return await decided(request, "/predict", json.dumps({"data": sample}).encode(), len(sample))


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/health/all", tags=["health"], responses=UNAVAILABLE)
async def health_all(request: Request) -> dict[str, str]:
    """Reports which models are alive, also those that are off."""
    models: Models = request.app.state.models
    states = await asyncio.gather(*map(models.health, models.urls))
    return dict(zip(models.urls, states, strict=True))


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready() -> dict[str, str]:
    """Does not ask the models: without them, callers still get the fallbacks."""
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the models that were trained together."""
    described: dict[str, Any] = request.app.state.metadata
    return described


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
