"""The report joins what both versions have logged, and judges it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy.exc import DBAPIError

from .database import connect
from .docs import add_docs
from .guard import count_refusal
from .judge import Report, judge, notice, refuse_wrong
from .route import JsonRoute
from .schema import UNAVAILABLE
from .settings import Settings
from .tables import records
from .transaction import transactions

settings = Settings()
transaction = transactions(
    connect(settings), settings.database_connections, settings.database_deadline_seconds
)
environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)
# The page loads nothing, so injected markup cannot load or run anything either.
HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Refuses to start if what it judges by is wrong."""
    refuse_wrong(settings)
    yield


app = FastAPI(
    title="shadow_ab_pattern: report",
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


@app.exception_handler(TimeoutError)
@app.exception_handler(DBAPIError)
async def refuse_without_database(_: Request, error: Exception) -> JSONResponse:
    """PostgreSQL is down or too slow, or has not got the tables yet."""
    detail = "the database is not available"
    reason = str(getattr(error, "orig", error)).partition("\n")[0]
    count_refusal(503, f"{detail}: {reason}"[:200].strip())
    return JSONResponse({"detail": detail}, 503, {"retry-after": "1"})


@app.get("/report", tags=["report"], responses=UNAVAILABLE)
def report() -> Report:
    """Returns the verdict and everything that it follows from."""
    with transaction() as connection:
        return judge(connection, settings)


@app.get("/", include_in_schema=False)
def page() -> HTMLResponse:
    """Shows the report to people."""
    content = {"report": report(), "settings": settings, "now": datetime.now(UTC)}
    return HTMLResponse(environment.get_template("page.html").render(content), headers=HEADERS)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
def ready() -> dict[str, str]:
    """The database answers and has the tables; what it judges by is seen by now."""
    with transaction() as connection:
        connection.execute(records.select().limit(1))
        notice(connection, settings)
    return {"status": "ready"}


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
