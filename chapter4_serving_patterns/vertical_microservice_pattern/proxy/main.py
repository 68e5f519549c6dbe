"""Each model's answer chooses the next model, and an answer that is sure enough comes early."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from . import calls, stages, tracing
from .calls import Service, missing_in, timings_of
from .docs import add_docs
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, PredictRequest
from .settings import Settings
from .stages import READERS, Row

settings = Settings()
services = {
    name: Service(name, str(url).rstrip("/"), stages.LABELS[name], settings.max_answer_bytes)
    for name, url in settings.services
}
write = TypeAdapter(dict[str, Any]).dump_json


class Answers(BaseModel):
    """The probabilities of each digit for each row; null without a stage that the row needs."""

    prediction: list[list[float] | None]
    # The stages that have answered for each row.
    stages: list[list[str]]
    # Why others have not.
    missing: dict[str, str] = {}


class Labels(BaseModel):
    """The digit of each row; null without a stage that the row needs."""

    prediction: list[str | None]
    stages: list[list[str]]
    missing: dict[str, str] = {}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keeps one pool of connections to all stages as long as the process lives."""
    app.state.metadata = json.loads((settings.model_directory / "metadata.json").read_bytes())
    with tracing.set_up("proxy"):
        async with calls.pool() as session:
            app.state.session = session
            yield


app = FastAPI(
    title="vertical_microservice_pattern",
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
app.add_middleware(tracing.Traced)
add_docs(app)


def deadline() -> float:
    return asyncio.get_running_loop().time() + settings.deadline_seconds


async def respond(request: Request, rows: list[Row], *, labels: bool = False) -> Response:
    """Responds with what there is, why the rest is missing, and how long each stage took."""
    session, names = request.app.state.session, request.app.state.metadata["labels"]
    verdicts, replies = await stages.run(
        session, services, rows, settings.min_confidence, deadline()
    )
    missing, headers = missing_in(replies), {"server-timing": timings_of(replies)}
    found: list[Any] = [verdict.prediction for verdict in verdicts]
    if not any(found):
        refusal = {"detail": f"no row can be read without {', '.join(missing)}", "missing": missing}
        return JSONResponse(refusal, 503, headers | {"retry-after": "1"})
    if labels:
        found = [row and names[row.index(max(row))] for row in found]
    content: dict[str, Any] = {
        "prediction": found,
        "stages": [verdict.stages for verdict in verdicts],
    }
    content |= {"missing": missing} if missing else {}
    return Response(write(content), media_type="application/json", headers=headers)


@app.post("/predict", tags=["prediction"], responses=REFUSALS, response_model=Answers)
async def predict(request: Request, body: PredictRequest) -> Response:
    """Returns the probabilities of every row, and the stages that it took."""
    return await respond(request, body.data)


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS, response_model=Labels)
async def predict_label(request: Request, body: PredictRequest) -> Response:
    """Returns the digit of every row, and the stages that it took."""
    return await respond(request, body.data, labels=True)


@app.get("/predict/test", tags=["prediction"], responses=UNAVAILABLE, response_model=Answers)
async def predict_test(request: Request) -> Response:
    """Returns the probabilities of the sample row."""
    return await respond(request, request.app.state.metadata["sample"])


@app.get("/predict/test/label", tags=["prediction"], responses=UNAVAILABLE, response_model=Labels)
async def predict_test_label(request: Request) -> Response:
    """Returns the digit of the sample row."""
    return await respond(request, request.app.state.metadata["sample"], labels=True)


async def states(request: Request, path: str) -> dict[str, str]:
    return await stages.states(request.app.state.session, services, path, deadline())


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/health/all", tags=["health"], responses=UNAVAILABLE)
async def health_all(request: Request) -> dict[str, str]:
    """Reports which stages are alive, and what is wrong with the others."""
    return await states(request, "/health")


@app.get("/ready", tags=["health"], responses=UNAVAILABLE, response_model=dict[str, str])
async def ready(request: Request) -> Response:
    """Reports ready if some rows can be read: `orientation` is, and a reader."""
    found = await states(request, "/ready")
    is_ready = found["orientation"] == "ok" and "ok" in [found[reader] for reader in READERS]
    return JSONResponse(found, 200 if is_ready else 503, {} if is_ready else {"retry-after": "1"})


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes a row and its labels; each stage describes its own model."""
    described: dict[str, Any] = request.app.state.metadata
    return described


@app.get("/label", tags=["model"], responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return dict(enumerate(request.app.state.metadata["labels"]))


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
