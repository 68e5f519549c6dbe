"""Answers questions about the records in PostgreSQL, and predicts one again."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import AwareDatetime, BaseModel, BeforeValidator
from sqlalchemy import distinct, exists, func, select, tuple_
from sqlalchemy.exc import DBAPIError

from .database import connect
from .docs import add_docs
from .guard import count_refusal
from .log import ID, version_of
from .model import Model
from .route import JsonRoute, refuse_invalid
from .schema import FEATURES, UNAVAILABLE, UNKNOWN, Refusal
from .settings import Settings
from .tables import records, shipped
from .transaction import transactions

# Pydantic alone would take numbers too.
Since = Annotated[AwareDatetime, BeforeValidator(datetime.fromisoformat)]

settings = Settings()
transaction = transactions(
    connect(settings), settings.database_connections, settings.database_deadline_seconds
)

INVALID: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "The request is invalid"}
}
OTHER_MODEL: dict[int | str, dict[str, Any]] = {
    409: {"model": Refusal, "description": "Another model has made this prediction"}
}


class Records(BaseModel):
    """Records as they are in the log."""

    data: list[dict[str, Any]]


class Entry(Records):
    """The records of one ID, more than one if it came twice, and its events."""

    events: list[dict[str, Any]]


class Counts(BaseModel):
    """How many records there are, how many were lost and why, and what is still to be shipped."""

    predictions: int
    tests: int
    refusals: int
    events: int
    events_without_prediction: int
    dropped: int
    torn: int
    bytes_waiting: int


class Replay(BaseModel):
    """What the model says now, and whether that equals what it said then to the bit."""

    job_id: str
    prediction: list[list[float]]
    equal: bool


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Loads the model, to predict with it again."""
    app.state.model = Model(settings.model_directory, FEATURES)
    yield


app = FastAPI(
    title="prediction_log_pattern: log",
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
    """PostgreSQL is down or too slow, or has not got the tables yet."""
    detail = "the database is not available"
    reason = str(getattr(error, "orig", error)).partition("\n")[0]
    count_refusal(503, f"{detail}: {reason}"[:200].strip())
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


def found(job_id: str) -> list[Any]:
    """Returns the kinds and the records with an ID, in their order; raises a 404 without any."""
    of_id = select(records.c.kind, records.c.body).where(records.c.id == job_id)
    rows: list[Any] = []
    if re.match(ID, job_id):
        with transaction() as connection:
            rows += connection.execute(of_id.order_by(records.c.at, records.c.position))
    if not rows:
        raise HTTPException(404, "there is no record with this ID")
    return rows


@app.get("/log", tags=["log"], responses=INVALID | UNAVAILABLE)
def logged(
    label: Annotated[str | None, Query(max_length=100, pattern=r"^[^\x00]*$")] = None,
    outlier: bool | None = None,
    since: Since | None = None,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> Records:
    """Returns the newest predictions of callers, if wanted those with a label, or with outliers."""
    body = records.c.body
    wanted = [records.c.kind == "prediction", ~body.has_key("test")]
    if label is not None:
        wanted.append(body["label"].has_key(label))
    if outlier is not None:
        wanted.append(body["is_outlier"].contains([True]) == outlier)
    if since is not None:
        # PostgreSQL knows fewer time zones.
        wanted.append(records.c.at >= func.to_timestamp(since.timestamp()))
    newest = select(body).where(*wanted).order_by(records.c.at.desc()).limit(limit)
    with transaction() as connection:
        return Records(data=[*connection.scalars(newest)])


@app.get("/log/counts", tags=["log"], responses=UNAVAILABLE)
def counts() -> Counts:
    """Counts what was written, what was lost, and what is waiting."""
    kind, body = records.c.kind, records.c.body
    is_test = body.has_key("test")
    predictions, others = records.alias(), records.alias()
    event = tuple_(others.c.id, others.c.body["event_id"].astext)
    joined = exists().where(predictions.c.id == others.c.id, predictions.c.kind == "prediction")
    of_kind = {
        "predictions": (kind == "prediction") & ~is_test,
        "tests": (kind == "prediction") & is_test,
        "refusals": kind == "refusal",
    }
    dropped = func.sum(body["count"].as_integer()).filter(kind == "dropped")
    of_records = select(
        *(func.count().filter(condition).label(name) for name, condition in of_kind.items()),
        func.coalesce(dropped, 0).label("dropped"),
    )
    of_events = select(
        func.count(distinct(event)).label("events"),
        func.count(distinct(event)).filter(~joined).label("events_without_prediction"),
    ).where(others.c.kind == "event")
    of_segments = select(
        func.coalesce(func.sum(shipped.c.torn), 0).label("torn"),
        func.coalesce(func.sum(shipped.c.size - shipped.c.position), 0).label("bytes_waiting"),
    )
    with transaction() as connection:
        rows = [connection.execute(each).one() for each in (of_records, of_events, of_segments)]
    return Counts(**{name: value for row in rows for name, value in row._mapping.items()})


@app.get("/log/{job_id}", tags=["log"], responses=UNKNOWN | UNAVAILABLE)
def entry(job_id: str) -> Entry:
    """Returns the records of an ID, and its events, each once."""
    rows = found(job_id)
    events = {row.body["event_id"]: row.body for row in reversed(rows) if row.kind == "event"}
    data = [row.body for row in rows if row.kind != "event"]
    return Entry(data=data, events=[*reversed(events.values())])


@app.post("/log/{job_id}/replay", tags=["log"], responses=UNKNOWN | OTHER_MODEL | UNAVAILABLE)
def replay(request: Request, job_id: str) -> Replay:
    """Predicts what was logged with the model of this process."""
    model: Model = request.app.state.model
    logged = [row.body for row in found(job_id) if row.kind == "prediction"]
    if not logged:
        raise HTTPException(404, "there is no prediction with this ID")
    if logged[0]["model"] != version_of(model.metadata):
        raise HTTPException(409, "another model has made this prediction")
    prediction = model.predict(logged[0]["data"]).tolist()
    return Replay(job_id=job_id, prediction=prediction, equal=prediction == logged[0]["prediction"])


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
def ready() -> dict[str, str]:
    """The database answers and has the tables."""
    with transaction() as connection:
        connection.execute(select(records.c.id).limit(1))
        connection.execute(select(shipped.c.segment).limit(1))
    return {"status": "ready"}


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
