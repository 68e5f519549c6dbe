"""A registry keeps every experiment with its metrics, and says which one is the champion."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import psycopg2.errors
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from . import registry
from .body import UNAVAILABLE, refuse_invalid
from .database import connect, is_embedded, reading
from .endpoints import Database, OneOfFew, api
from .guard import Guard
from .migrate import current_revision, migrate, outdated_revisions
from .settings import Settings

settings = Settings()
log = logging.getLogger("uvicorn.error")
# A list may take ten times the memory of its answer while it is put together.
LISTS_AT_ONCE = 4
NOT_MIGRATED = "the database is not migrated: run python -m app.migrate"
MODELS_A_PAGE = 20
EXPERIMENTS_A_MODEL = 5
METRICS_AN_EXPERIMENT = 12


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Makes the pool of connections, and a thread for each; the database may come later."""
    app.state.engine = connect(settings)
    app.state.outdated_revisions = outdated_revisions()
    # A thread without a connection would only wait for one.
    current_default_thread_limiter().total_tokens = settings.database_connections
    app.state.lists = asyncio.Semaphore(LISTS_AT_ONCE)
    if is_embedded(app.state.engine):
        migrate(app.state.engine)
    yield
    app.state.engine.dispose()


app = FastAPI(title="model_db", description=__doc__, version="0.1.0", lifespan=lifespan)
app.add_middleware(Guard, settings=settings)
app.exception_handler(RequestValidationError)(refuse_invalid)
app.include_router(api)


def metrics_of(evaluations: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns the first evaluations that are numbers, with their names."""
    numbers = [
        (name, value)
        for name, value in evaluations.items()
        # An integer may be too large to be written as 1.5e+10.
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    ]
    return numbers[:METRICS_AN_EXPERIMENT]


pages = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)
pages.filters["metrics"] = metrics_of
# The page needs nothing from anywhere, so that what somebody smuggles into it does nothing either.
PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


@app.exception_handler(registry.UnknownError)
async def refuse_unknown(_: Request, error: Exception) -> JSONResponse:
    """Says what there is not."""
    return JSONResponse({"detail": str(error)}, 404)


@app.exception_handler(registry.ConflictError)
async def refuse_conflict(_: Request, error: Exception) -> JSONResponse:
    """Says what is there, so that the caller can decide anew."""
    return JSONResponse({"detail": str(error)}, 409)


@app.exception_handler(NoConnectionError)
@app.exception_handler(DBAPIError)
async def refuse_without_database(_: Request, error: Exception) -> JSONResponse:
    """Asks the caller to come again: the database is gone, restarting, slow or has no tables."""
    # The driver's own error: SQLAlchemy's would show what was to be stored.
    reason = " ".join(str(getattr(error, "orig", error)).split())
    if is_without_tables(error):
        detail = NOT_MIGRATED
    elif isinstance(error, DataError | IntegrityError | ProgrammingError):
        raise error
    else:
        detail = "the database is out of reach"
    log.warning("%s: %s", detail, reason)
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


def is_without_tables(error: Exception) -> bool:
    """Tells whether a table or a column is missing, in PostgreSQL or in SQLite."""
    reason = getattr(error, "orig", None)
    if isinstance(reason, psycopg2.errors.UndefinedTable | psycopg2.errors.UndefinedColumn):
        return True
    return str(reason).startswith(("no such table", "no such column"))


@app.get("/health")
@app.get("/v0.1/health")
async def health() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@app.get("/ready", responses=UNAVAILABLE)
def ready(request: Request, database: Database) -> dict[str, str]:
    """The database answers, and its tables are there."""
    if current_revision(database) in request.app.state.outdated_revisions:
        raise HTTPException(503, NOT_MIGRATED, {"retry-after": "1"})
    return {"status": "ready"}


# For people, so it is no part of what is described to programs.
@app.get("/", include_in_schema=False, dependencies=[OneOfFew])
def page(database: Database, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1) -> Response:
    """Shows every model with its champion and its newest experiments."""
    with reading(database) as session:
        found = registry.overviews(
            session,
            limit=MODELS_A_PAGE + 1,
            offset=MODELS_A_PAGE * (page - 1),
            newest=EXPERIMENTS_A_MODEL,
        )
    content = pages.get_template("page.html").render(
        overviews=found[:MODELS_A_PAGE], page=page, has_next=len(found) > MODELS_A_PAGE
    )
    return HTMLResponse(content, headers=PAGE_HEADERS)
