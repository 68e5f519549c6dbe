"""A registry keeps every experiment with its metrics, and says which one is the champion."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg2.errors
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from . import registry
from .database import Database, connect, is_embedded
from .docs import add_docs
from .endpoints import api
from .guard import count_refusal
from .migrate import current_revision, migrate, outdated_revisions
from .page import router as page
from .route import JsonRoute, refuse_invalid
from .schema import UNAVAILABLE
from .settings import Settings

settings = Settings()
NOT_MIGRATED = "the database is not migrated: run python -m app.migrate"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Creates the connection pool and as many threads; the database may start later."""
    app.state.engine = connect(settings)
    app.state.outdated_revisions = outdated_revisions()
    # More threads than connections would only wait for a connection.
    current_default_thread_limiter().total_tokens = settings.database_connections
    app.state.list_slots = asyncio.Semaphore(settings.lists_at_once)
    if is_embedded(app.state.engine):
        migrate(app.state.engine)
    yield
    app.state.engine.dispose()


app = FastAPI(
    title="model_db",
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
app.include_router(api)
app.include_router(page)


@app.exception_handler(registry.UnknownError)
async def refuse_unknown(_: Request, error: Exception) -> JSONResponse:
    """Names the missing row."""
    return JSONResponse({"detail": str(error)}, 404)


@app.exception_handler(registry.ConflictError)
async def refuse_conflict(_: Request, error: Exception) -> JSONResponse:
    """Reports the existing state, so that the caller can decide what to do."""
    return JSONResponse({"detail": str(error)}, 409)


@app.exception_handler(NoConnectionError)
@app.exception_handler(DBAPIError)
async def refuse_without_database(_: Request, error: Exception) -> JSONResponse:
    """Asks the caller to retry: the database is down, restarting, slow or has no tables."""
    if is_without_tables(error):
        detail = NOT_MIGRATED
    elif isinstance(error, DataError | IntegrityError | ProgrammingError):
        raise error
    else:
        detail = "the database is unreachable"
    # The driver's error without its details: these, and SQLAlchemy's, may include values.
    reason = str(getattr(error, "orig", error)).partition("\n")[0]
    # repr() escapes control characters.
    count_refusal(503, f"{detail}: {reason!r}")
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


def is_without_tables(error: Exception) -> bool:
    """Tells whether a table or a column is missing."""
    reason = getattr(error, "orig", None)
    if isinstance(reason, psycopg2.errors.UndefinedTable | psycopg2.errors.UndefinedColumn):
        return True
    return str(reason).startswith(("no such table", "no such column"))


@app.get("/health", tags=["health"])
@app.get("/v0.1/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready(request: Request, database: Database) -> dict[str, str]:
    """The database responds and is migrated."""
    revision = await run_in_threadpool(current_revision, database)
    if revision in request.app.state.outdated_revisions:
        count_refusal(503, NOT_MIGRATED)
        raise HTTPException(503, NOT_MIGRATED, {"retry-after": "1"})
    return {"status": "ready"}
