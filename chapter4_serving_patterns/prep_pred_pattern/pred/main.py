"""Predicts tensors in the Open Inference Protocol, and refuses those of another pair."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException

from .docs import add_docs
from .guard import count_refusal
from .model import Model, NoAnswerError
from .route import JsonRoute, body_of, parse
from .schema import (
    REFUSALS,
    UNAVAILABLE,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Refusal,
    TensorMetadata,
)
from .settings import Settings
from .tensors import HEADER_LENGTH, TensorError, header_length, read, write

NAMED: dict[str, Any] = {
    "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "There is no such model"},
}

settings = Settings()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model before the port opens, so a caller who can connect gets predictions."""
    app.state.model = Model(settings.model_directory)
    # One thread, because more would share the core and make every response slower.
    with ThreadPoolExecutor(max_workers=1) as thread:
        app.state.thread = thread
        yield


app = FastAPI(
    title="prep_pred_pattern: pred",
    description=__doc__,
    version="0.1.0",
    lifespan=lifespan,
    docs_url=None,
    redoc_url=None,
    # Without this, FastAPI looks for a tracer on every request.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.router.route_class = JsonRoute
add_docs(app)


@app.exception_handler(RequestValidationError)
async def refuse_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Lists at most ten errors, in the form of the protocol."""
    count_refusal(400, error.errors()[0]["type"])
    reasons = [
        f"{'.'.join(str(part)[:50] for part in reason['loc'])}: {reason['msg'][:200]}"
        for reason in error.errors()[:10]
    ]
    return JSONResponse({"error": "; ".join(reasons)}, 400)


@app.exception_handler(TensorError)
@app.exception_handler(NoAnswerError)
async def refuse_tensor(_: Request, error: Exception) -> JSONResponse:
    """Says why a tensor cannot be predicted."""
    count_refusal(400, "a tensor that the model cannot predict")
    return JSONResponse({"error": str(error)}, 400)


@app.exception_handler(StarletteHTTPException)
async def say_why(_: Request, error: StarletteHTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def model_of(request: Request) -> Model:
    """Returns the model that the lifespan loaded, if the path names it."""
    model: Model = request.app.state.model
    if request.path_params.get("name", model.name) != model.name:
        count_refusal(404, "there is no such model")
        raise HTTPException(404, f"there is no such model; there is {model.name}")
    return model


def require_same_pair(request: InferRequest, model: Model) -> None:
    pair = request.parameters.get("pair", model.pair)
    if pair != model.pair:
        count_refusal(400, "the preprocessing belongs to another pair")
        detail = f"the tensors belong to the pair {str(pair)[:64]}, this model to {model.pair}"
        raise HTTPException(400, detail)


@app.post(
    "/v2/models/{name}/infer",
    tags=["protocol"],
    responses=REFUSALS,
    response_model=InferResponse,
    openapi_extra=NAMED
    | {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
                "application/octet-stream": {"schema": {}},
            },
        }
    },
)
async def infer(request: Request) -> Response:
    """Predicts the pictures of one tensor, in one call of the model."""
    content = await body_of(request)
    length = header_length(request.headers.get(HEADER_LENGTH), content)
    body = cast("InferRequest", parse(InferRequest, content[:length], request.scope))
    model = model_of(request)
    require_same_pair(body, model)
    pictures = read(body, content[length:], model, settings.max_pictures)
    loop = asyncio.get_running_loop()
    probabilities = await loop.run_in_executor(request.app.state.thread, model.predict, pictures)
    answer, headers = write(body, model, probabilities)
    return Response(answer, headers=headers)


@app.get(
    "/v2/models/{name}", tags=["protocol"], responses=UNKNOWN | UNAVAILABLE, openapi_extra=NAMED
)
async def model_metadata(request: Request) -> ModelMetadata:
    """Describes the tensors of the model, and which pair it belongs to."""
    model = model_of(request)
    shapes = {model.input: [-1, *model.shape], model.output: [-1, len(model.labels)]}
    pictures, probabilities = (
        TensorMetadata(name=name, datatype="FP32", shape=shape) for name, shape in shapes.items()
    )
    return ModelMetadata(
        name=model.name,
        versions=[model.version],
        platform="onnx_onnxv1",
        inputs=[pictures],
        outputs=[probabilities],
        parameters={"pair": model.pair},
    )


@app.get("/v2/health/live", tags=["protocol"])
async def live() -> dict[str, bool]:
    """Reports that the process is alive."""
    return {"live": True}


@app.get("/v2/health/ready", tags=["protocol"], responses=UNAVAILABLE)
async def ready_for_inference(request: Request) -> dict[str, bool]:
    """The model is loaded; a busy server is ready."""
    model_of(request)
    return {"ready": True}


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports the same as `/v2/health/live`, like every server here."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request) -> dict[str, str]:
    """Reports the same as `/v2/health/ready`, like every server here."""
    model_of(request)
    return {"status": "ready"}


def openapi() -> dict[str, Any]:
    """Adds the schema of a body that FastAPI does not parse, because tensors may follow it."""
    document = FastAPI.openapi(app)
    template = "#/components/schemas/{model}"
    schema = InferRequest.model_json_schema(ref_template=template)
    document["components"]["schemas"] |= schema.pop("$defs") | {"InferRequest": schema}
    return document


app.openapi = openapi  # type: ignore[method-assign]
# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
