"""Three models in one process fall together, are updated together and share every library."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, FailFast

from .docs import add_docs
from .guard import count_refusal
from .model import Model, NoAnswerError
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, Labels, Probabilities, limits_of, width_in
from .settings import Settings

Prediction = TypeVar("Prediction")


def build(directory: Path) -> FastAPI:
    """Returns an application that serves the model in this directory; it can be started once."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Loads the model before the port opens, so a caller who can connect gets predictions."""
        app.state.model = Model(directory, width_in(directory))
        # One thread, because more would share the core and make every response slower.
        with ThreadPoolExecutor(max_workers=1) as thread:
            add_handlers(app, app.state.model, thread)
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
    app.router.route_class = JsonRoute
    app.exception_handler(RequestValidationError)(refuse_invalid)
    app.exception_handler(NoAnswerError)(refuse_unanswerable)
    add_docs(app)
    return app


async def refuse_unanswerable(_: Request, error: Exception) -> JSONResponse:
    """Rejects rows for which the model computes NaN or infinity."""
    count_refusal(422, "the model has no finite answer")
    return JSONResponse({"detail": str(error)}, 422)


async def in_thread(
    thread: ThreadPoolExecutor,
    predict: Callable[[list[list[float]]], Prediction],
    rows: list[list[float]],
) -> Prediction:
    """Predicts outside the event loop, so that another model of the process answers meanwhile."""
    return await asyncio.get_running_loop().run_in_executor(thread, predict, rows)


def add_handlers(app: FastAPI, model: Model, thread: ThreadPoolExecutor) -> None:
    """Adds the handlers; how wide a row is, is known once the model is loaded."""
    limits = limits_of(model)
    example: Any = {"data": model.sample}

    class PredictRequest(BaseModel):
        """Rows of numbers, one per feature, in the order that `/metadata` gives."""

        model_config = ConfigDict(extra="forbid", json_schema_extra={"example": example})

        # One invalid value is enough to reject a request, and collecting thousands would take long.
        data: Annotated[
            list[Annotated[list[Annotated[float, limits.value]], limits.row, FailFast()]],
            limits.rows,
            FailFast(),
        ]

    @app.post("/predict", tags=["prediction"], responses=REFUSALS)
    async def predict(body: PredictRequest) -> Probabilities:
        """Predicts the probabilities of every row."""
        probabilities = await in_thread(thread, model.predict, body.data)
        return Probabilities(prediction=probabilities.tolist())

    @app.post("/predict/label", tags=["prediction"], responses=REFUSALS)
    async def predict_label(body: PredictRequest) -> Labels:
        """Predicts the label of every row."""
        return Labels(prediction=await in_thread(thread, model.predict_labels, body.data))

    @app.get("/predict/test", tags=["prediction"], responses=UNAVAILABLE)
    async def predict_test() -> Probabilities:
        """Predicts the sample row of the metadata."""
        probabilities = await in_thread(thread, model.predict, model.sample)
        return Probabilities(prediction=probabilities.tolist())

    @app.get("/predict/test/label", tags=["prediction"], responses=UNAVAILABLE)
    async def predict_test_label() -> Labels:
        """Predicts the label of the sample row."""
        return Labels(prediction=await in_thread(thread, model.predict_labels, model.sample))

    @app.get("/health", tags=["health"])
    async def health() -> dict[str, str]:
        """Reports that the process is alive."""
        return {"status": "ok", "health": "ok"}

    @app.get("/ready", tags=["health"], responses=UNAVAILABLE)
    async def ready() -> dict[str, str]:
        """The model is loaded; a test prediction would queue, and a busy process is ready."""
        return {"status": "ready"}

    @app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
    async def metadata() -> dict[str, Any]:
        """Describes the model: version, origin, input, output and metrics."""
        return model.metadata

    @app.get("/label", tags=["model"], responses=UNAVAILABLE)
    async def label() -> dict[int, str]:
        """Returns the label of each index of a prediction."""
        return dict(enumerate(model.labels))

    # Routes are tried in order, and FastAPI puts those of the documentation first.
    app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))


app = build(Settings().model_directory)
