"""A scheduled job predicts every row of a table exactly once, and no process outlives it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict
from sqlalchemy import ColumnElement, insert, select, true
from sqlalchemy.exc import DBAPIError

from . import chunks
from .docs import add_docs
from .guard import log_refusals, refusals
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, PredictRequest, Refusal
from .settings import Settings
from .tables import connect, items, predictions, unpredicted
from .transaction import transactions

settings = Settings()
transaction = transactions(
    connect(settings), settings.database_connections, settings.database_deadline_seconds
)

HIGHEST_ID = 2**63 - 1
INVALID: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "The request is invalid"}
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "There is no such job"}
}
After = Annotated[int, Query(ge=0, le=HIGHEST_ID)]
Limit = Annotated[int, Query(ge=1, le=1_000)]


class Item(BaseModel):
    """A row of the table, and its prediction by the current model if it has one."""

    item_id: int
    values: list[float]
    prediction: str | None
    probabilities: list[float] | None
    created_at: datetime
    predicted_at: datetime | None


class Page(BaseModel):
    """Some items in the order of their ids; `next` is the `after` of the next page."""

    data: list[Item]
    next: int | None


class Stored(BaseModel):
    """The ids of new items, in the order of the rows."""

    item_ids: list[int]


class JobState(BaseModel):
    """What a job has done; `missing` counts its rows without a prediction."""

    model_config = ConfigDict(from_attributes=True, protected_namespaces=())

    job_id: int
    model_version: str
    planned_at: datetime
    finished_at: datetime | None
    forecast_seconds: float | None
    misses_window: bool | None
    chunks: int
    waiting: int
    done: int
    failed: int
    attempts: int
    rows: int
    missing: int
    reason: str | None


class Jobs(BaseModel):
    """The newest jobs."""

    data: list[JobState]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Reads the metadata without loading the model: only jobs predict."""
    app.state.metadata = json.loads((settings.model_directory / "metadata.json").read_bytes())
    yield


app = FastAPI(
    title="batch_pattern",
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


@app.exception_handler(TimeoutError)
@app.exception_handler(DBAPIError)
async def refuse_without_database(_: Request, error: Exception) -> JSONResponse:
    """PostgreSQL is down or too slow, or has not got the tables."""
    if not refusals:
        asyncio.get_running_loop().call_later(1, log_refusals)
    refusals[f"503 {getattr(error, 'orig', error)}"[:200].strip()] += 1
    detail = "the database is not available"
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


def page(request: Request, condition: ColumnElement[bool], after: int, limit: int) -> Page:
    version, labels = version_of(request), request.app.state.metadata["labels"]
    by_model = (predictions.c.item_id == items.c.item_id) & (predictions.c.model_version == version)
    joined = items.outerjoin(predictions, by_model)
    columns = (
        *items.c,
        predictions.c.label,
        predictions.c.probabilities,
        predictions.c.predicted_at,
    )
    wanted = select(*columns).select_from(joined).where(items.c.item_id > after, condition)
    with transaction() as connection:
        rows = connection.execute(wanted.order_by(items.c.item_id).limit(limit)).all()
    data = [
        Item(prediction=None if row.label is None else labels[row.label], **row._mapping)
        for row in rows
    ]
    return Page(data=data, next=data[-1].item_id if len(data) == limit else None)


def version_of(request: Request) -> str:
    return chunks.version_of(request.app.state.metadata)


@app.post("/data", tags=["data"], status_code=201, responses=REFUSALS)
def store(body: PredictRequest) -> Stored:
    """Stores rows for the next job."""
    # What is too small for a float32 becomes 0, which PostgreSQL would refuse.
    rows = np.asarray(body.data, np.float32).astype(float).tolist()
    values = [{"values": row} for row in rows]
    new = insert(items).returning(items.c.item_id, sort_by_parameter_order=True)
    with transaction() as connection:
        return Stored(item_ids=[*connection.scalars(new, values)])


@app.get("/data/all", tags=["data"], responses=INVALID | UNAVAILABLE)
def data_all(request: Request, after: After = 0, limit: Limit = 100) -> Page:
    """Lists items, whether predicted or not."""
    return page(request, true(), after, limit)


@app.get("/data/predicted", tags=["data"], responses=INVALID | UNAVAILABLE)
def data_predicted(request: Request, after: After = 0, limit: Limit = 100) -> Page:
    """Lists items that the current model has predicted."""
    return page(request, ~unpredicted(version_of(request)), after, limit)


@app.get("/data/unpredicted", tags=["data"], responses=INVALID | UNAVAILABLE)
def data_unpredicted(request: Request, after: After = 0, limit: Limit = 100) -> Page:
    """Lists items that the next job will predict."""
    return page(request, unpredicted(version_of(request)), after, limit)


@app.get("/jobs", tags=["jobs"], responses=UNAVAILABLE)
def jobs(request: Request) -> Jobs:
    """Lists the newest jobs of all models, the newest first."""
    with transaction() as connection:
        return Jobs(data=[JobState.model_validate(row) for row in chunks.states(connection)])


@app.get("/jobs/{job_id}", tags=["jobs"], responses=INVALID | UNKNOWN | UNAVAILABLE)
def job(job_id: Annotated[int, Path(ge=1, le=HIGHEST_ID)]) -> JobState:
    """Returns what a job has done."""
    with transaction() as connection:
        found = chunks.states(connection, job_id)
    if not found:
        raise HTTPException(404, "there is no job with this ID")
    return JobState.model_validate(found[0])


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
def ready() -> dict[str, str]:
    """The database answers and has the tables."""
    with transaction() as connection:
        connection.execute(select(items.c.item_id).limit(1))
    return {"status": "ready"}


@app.get("/metadata", tags=["model"], responses=UNAVAILABLE)
async def metadata(request: Request) -> dict[str, Any]:
    """Describes the model: version, origin, input, output and metrics."""
    found: dict[str, Any] = request.app.state.metadata
    return found


@app.get("/label", tags=["model"], responses=UNAVAILABLE)
async def label(request: Request) -> dict[int, str]:
    """Returns the label of each index of a prediction."""
    return dict(enumerate(request.app.state.metadata["labels"]))


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
