"""Chooses the model by the time in the body, a condition that a mesh cannot see."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from . import conditions
from .docs import add_docs
from .guard import count_refusal
from .mesh import Mesh, NoResponseError
from .pictures import EXAMPLE, DatedRequest
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, Labels, Probabilities, Refusal
from .settings import Settings

NO_RESPONSE: dict[int | str, dict[str, Any]] = {
    502: {"model": Refusal, "description": "The response of the mesh is no model's"},
    504: {"model": Refusal, "description": "No response within the deadline"},
}

settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Checks the bands, and keeps one pool of connections as long as the process lives."""
    app.state.bands = conditions.load(settings.bands_file)
    app.state.mesh = Mesh(settings.mesh_url, settings.deadline_seconds)
    yield
    await app.state.mesh.close()


app = FastAPI(
    title="condition_based_pattern: router",
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


@app.exception_handler(NoResponseError)
async def say_why(_: Request, error: NoResponseError) -> JSONResponse:
    """Responds with the reason why there is no prediction."""
    count_refusal(error.status, str(error))
    headers = {"retry-after": "1"} if error.status == 503 else {}
    return JSONResponse({"detail": str(error)}, error.status, headers)


async def ask(request: Request, taken_at: datetime, body: bytes | None = None) -> Response:
    """Asks the model for the condition at this time, and passes its response on."""
    state = request.app.state
    target = conditions.condition_of(taken_at, state.bands.bands, state.bands.zone)
    response: Response = await state.mesh.ask(request.url.path, target, body)
    return response


PREDICTION: dict[str, Any] = {"tags": ["prediction"], "responses": REFUSALS | NO_RESPONSE}
EXAMPLES: dict[str, Any] = {"tags": ["example"], "responses": UNAVAILABLE | NO_RESPONSE}


@app.post("/predict", response_model=Probabilities, **PREDICTION)
@app.post("/predict/label", response_model=Labels, **PREDICTION)
async def predict(request: Request, body: DatedRequest) -> Response:
    """Passes the body on unchanged."""
    return await ask(request, body.taken_at, await request.body())


@app.get("/predict/test", response_model=Probabilities, **EXAMPLES)
@app.get("/predict/test/label", response_model=Labels, **EXAMPLES)
@app.get("/metadata", response_model=dict[str, Any], **EXAMPLES)
@app.get("/label", response_model=dict[int, str], **EXAMPLES)
async def example(request: Request) -> Response:
    """Asks the model for the example; with the header `target`, the mesh asks another one."""
    return await ask(request, EXAMPLE)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready() -> dict[str, str]:
    """Does not ask the models: one that is away makes no caller of the other wait."""
    return {"status": "ready"}


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
