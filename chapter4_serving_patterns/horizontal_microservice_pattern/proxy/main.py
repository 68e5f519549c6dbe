"""One request goes to three models at once, and what has answered by the deadline is the answer."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, TypeAdapter

from . import calls, fan_out, tracing
from .calls import Answer, Reply, Service, missing_in, timings_of
from .docs import add_docs
from .fan_out import labels_of
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, PredictRequest
from .settings import Settings

STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}},
}

# Of each service: any other iris, and its own.
LABELS = 2

settings = Settings()
services = [
    Service(name, str(url).rstrip("/"), LABELS, settings.max_answer_bytes)
    for name, url in settings.services.items()
]
write = TypeAdapter(dict[str, Any]).dump_json


class Answers(BaseModel):
    """The answer of each service, by its name, and why others are missing."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Answer]

    missing: dict[str, str] = {}


class Labels(BaseModel):
    """The label of each row; null where a service is missing and no other is sure."""

    prediction: list[str | None]
    missing: dict[str, str] = {}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keeps one pool of connections to all services as long as the process lives."""
    app.state.metadata = json.loads((settings.model_directory / "metadata.json").read_bytes())
    with tracing.set_up("proxy"):
        async with calls.pool() as session:
            app.state.session = session
            yield


app = FastAPI(
    title="horizontal_microservice_pattern",
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


async def ask(request: Request, body: bytes | None, rows: int) -> list[Reply]:
    """Asks all services, with the bytes that the caller has sent."""
    session = request.app.state.session
    return await fan_out.ask_all(session, services, body, rows, settings.deadline_seconds)


def respond(content: dict[str, Any], replies: Sequence[Reply]) -> Response:
    """Responds with what there is, why the rest is missing, and how long each service took."""
    missing = missing_in(replies)
    headers = {"server-timing": timings_of(replies)}
    if len(missing) == len(replies):
        refusal = {"detail": "no service has answered", "missing": missing}
        return JSONResponse(refusal, 503, headers | {"retry-after": "1"})
    content |= {"missing": missing} if missing else {}
    return Response(write(content), media_type="application/json", headers=headers)


def predictions_in(replies: Sequence[Reply]) -> dict[str, Any]:
    return {
        reply.service: {"prediction": reply.prediction}
        for reply in replies
        if reply.prediction is not None
    }


@app.post("/predict", tags=["prediction"], responses=REFUSALS, response_model=Answers)
async def predict(request: Request, body: PredictRequest) -> Response:
    """Returns the probabilities of every row from each service."""
    replies = await ask(request, await request.body(), len(body.data))
    return respond(predictions_in(replies), replies)


@app.post("/predict/label", tags=["prediction"], responses=REFUSALS, response_model=Labels)
async def predict_label(request: Request, body: PredictRequest) -> Response:
    """Returns the label of every row, or null where it would be a guess."""
    replies = await ask(request, await request.body(), len(body.data))
    return respond({"prediction": labels_of(replies)}, replies)


@app.post(
    "/predict/stream",
    tags=["prediction"],
    responses=STREAM | REFUSALS,
    response_class=StreamingResponse,
)
async def predict_stream(request: Request, body: PredictRequest) -> StreamingResponse:
    """Returns a line of JSON for each service as soon as it has answered, the slowest last."""
    replies = fan_out.as_they_come(
        request.app.state.session,
        services,
        await request.body(),
        len(body.data),
        settings.deadline_seconds,
    )
    return StreamingResponse(lines_of(replies), media_type="application/x-ndjson")


async def lines_of(replies: AsyncGenerator[Reply, None]) -> AsyncIterator[bytes]:
    async with aclosing(replies):
        async for reply in replies:
            said = predictions_in([reply]) or {"missing": missing_in([reply])}
            yield write(said) + b"\n"


@app.get("/predict/get/test", tags=["prediction"], responses=UNAVAILABLE, response_model=Answers)
async def predict_get_test(request: Request) -> Response:
    """Returns the probabilities of the sample row that the services have."""
    replies = await ask(request, None, len(request.app.state.metadata["sample"]))
    return respond(predictions_in(replies), replies)


@app.get("/predict/post/test", tags=["prediction"], responses=UNAVAILABLE, response_model=Answers)
async def predict_post_test(request: Request) -> Response:
    """Returns the probabilities of the sample row that the proxy sends."""
    sample = request.app.state.metadata["sample"]
    replies = await ask(request, json.dumps({"data": sample}).encode(), len(sample))
    return respond(predictions_in(replies), replies)


async def states(request: Request, path: str) -> dict[str, str]:
    session = request.app.state.session
    return await fan_out.states(session, services, path, settings.deadline_seconds)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/health/all", tags=["health"], responses=UNAVAILABLE)
async def health_all(request: Request) -> dict[str, str]:
    """Reports which services are alive, and what is wrong with the others."""
    return await states(request, "/health")


@app.get("/ready", tags=["health"], responses=UNAVAILABLE, response_model=dict[str, str])
async def ready(request: Request) -> Response:
    """Reports ready if one service is: its answers are better than none."""
    found = await states(request, "/ready")
    is_ready = "ok" in found.values()
    return JSONResponse(found, 200 if is_ready else 503, {} if is_ready else {"retry-after": "1"})


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes a row and its labels; each service describes its own model."""
    described: dict[str, Any] = request.app.state.metadata
    return described


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
