"""The report joins what both versions have logged, and judges it by the rule."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .compare import Judgement, Pairs, compare
from .database import connect
from .deadline import within
from .docs import add_docs
from .guard import count_refusal
from .pairs import find_trial, join, keep_rule
from .route import JsonRoute
from .rule import Rule, RuleError
from .rule import read as read_rule
from .schema import UNAVAILABLE
from .settings import Settings
from .tables import records

settings = Settings()
engine = connect(settings)
slots = BoundedSemaphore(settings.database_connections)
environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)
# The page loads nothing, so injected markup cannot load or run anything either.
HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


class Report(Judgement):
    """The verdict on the newest models, and by which rule; without both there is no trial."""

    live_model: str | None = None
    shadow_model: str | None = None
    began: datetime | None = None
    rule: Rule | None = None
    rule_sha256: str | None = None
    rule_seen: datetime | None = None
    counts: Pairs = Pairs()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Refuses to start with a rule that is wrong."""
    read_rule(settings.rule_file)
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


@contextmanager
def transaction() -> Iterator[Connection]:
    """Yields a connection."""
    seconds = settings.database_deadline_seconds
    if not slots.acquire(timeout=seconds):
        raise TimeoutError("no connection was free in time")
    try:
        with engine.connect() as connection, within(seconds, connection), connection.begin():
            yield connection
    finally:
        slots.release()


def judge(connection: Connection, settings: Settings) -> Report:
    """Judges the newest models; a rule that came after their first pair makes that void."""
    try:
        written, digest = read_rule(settings.rule_file)
    except RuleError as error:
        return Report(verdict="void", reasons=[str(error)])
    seen = keep_rule(connection, digest)
    by: dict[str, Any] = {"rule": written, "rule_sha256": digest, "rule_seen": seen}
    trial = find_trial(connection, settings)
    if trial is None:
        return Report(verdict="wait", reasons=["no request has reached both versions"], **by)
    counts = join(connection, trial, settings.settle_seconds)
    judgement = compare(counts, written)
    if seen > trial["began"]:
        reason = (
            f"the rule is younger than the first pair: {seen:%F %T} after {trial['began']:%F %T}"
        )
        judgement = judgement.model_copy(update={"verdict": "void", "reasons": [reason]})
    return Report(**judgement.model_dump(), **by, **trial, counts=counts)


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
    """The database answers and has the tables; a new rule is seen by now, if nobody else looks."""
    with transaction() as connection:
        connection.execute(records.select().limit(1))
        with suppress(RuleError):
            keep_rule(connection, read_rule(settings.rule_file)[1])
    return {"status": "ready"}


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
