"""The monitor judges windows of the log, shows them, and keeps the alerts that Prometheus sends."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, Counter, generate_latest
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError

from . import baseline, incidents, observed, page, windows
from .database import connect
from .docs import add_docs
from .gauges import LastWindows
from .guard import count_refusal
from .incidents import Alert, Alerts, Incidents, Received
from .judge import MIN_ROWS
from .route import JsonRoute, refuse_invalid
from .schema import REFUSALS, UNAVAILABLE, Refusal
from .settings import Settings
from .transaction import transactions

log = logging.getLogger("uvicorn.error")

PLAYBOOK = Path(__file__).parents[1] / "playbook.md"
PAUSE_SECONDS = 0.2

settings = Settings()
transaction = transactions(
    connect(settings), settings.database_connections, settings.database_deadline_seconds
)
last = LastWindows()
REGISTRY.register(last)
JUDGED = Counter("windows_judged", "Judged windows")

TOO_FEW_ROWS: dict[int | str, dict[str, Any]] = {
    409: {"model": Refusal, "description": "The log has too few predictions"}
}
NO_SECTION: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "There is no such alert"}
}
INVALID: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "The request is invalid"}
}

# PostgreSQL stores no text with a zero character.
ModelName = Annotated[str | None, Query(max_length=100, pattern=r"^[^\x00]*$")]


class Baseline(BaseModel):
    """The model, and how many of its rows are the baseline now."""

    model: str
    rows: int


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Judges windows in a thread, until the server stops."""
    stopping = Event()
    thread = Thread(target=watch, args=[stopping])
    thread.start()
    yield
    stopping.set()
    thread.join()


app = FastAPI(
    title="prediction_monitoring_pattern: monitor",
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


def watch(stopping: Event) -> None:
    """Judges every window as soon as it is complete; without PostgreSQL it waits."""
    is_created = False
    while not stopping.wait(PAUSE_SECONDS):
        try:
            with transaction() as connection:
                if not is_created:
                    observed.metadata.create_all(connection)
                is_judged = windows.judge_next(connection, settings)
                # Another monitor may have judged it.
                last.found = windows.newest(connection, 2)
            is_created = True
            JUDGED.inc(is_judged)
        except DBAPIError as error:
            log.warning("the database is not available: %s", str(error.orig).partition("\n")[0])
            stopping.wait(1)
        except Exception:
            log.exception("a window cannot be judged")
            stopping.wait(1)


@app.post("/baseline", tags=["monitor"], responses=TOO_FEW_ROWS | INVALID | UNAVAILABLE)
def take_baseline(model: ModelName = None) -> Baseline:
    """Takes the newest predictions of a model as its baseline, by default those of the last one."""
    with transaction() as connection:
        if model is None:
            model = next(iter(windows.newest(connection, 1)), "")
        rows = baseline.take_last(connection, model, settings)
    if not rows:
        raise HTTPException(409, f"the log has fewer than {MIN_ROWS} predictions of this model")
    return Baseline(model=model, rows=rows)


@app.post("/api/v2/alerts", tags=["monitor"], responses=REFUSALS)
async def receive(body: Alerts) -> Received:
    """Takes alerts as an Alertmanager does: each once, with its beginning and its end."""
    await run_in_threadpool(keep, body.root)
    return Received(alerts=len(body.root))


def keep(alerts: list[Alert]) -> None:
    with transaction() as connection:
        incidents.keep(connection, alerts)


@app.get("/incidents", tags=["monitor"], responses=UNAVAILABLE)
def list_incidents() -> Incidents:
    """Returns the newest incidents."""
    with transaction() as connection:
        return Incidents(data=[dict(row._mapping) for row in incidents.newest(connection)])


@app.get("/playbook/{alert}", tags=["monitor"], responses=NO_SECTION)
def playbook(alert: str) -> Response:
    """Returns what to do about an alert."""
    _, *sections = PLAYBOOK.read_text("utf-8").split("\n## ")
    known = {section.partition("\n")[0]: section for section in sections}
    if alert not in known:
        raise HTTPException(404, f"there is no such alert; choose {', '.join(known)}")
    return PlainTextResponse(known[alert])


@app.get("/", include_in_schema=False)
def show() -> HTMLResponse:
    """Shows the checks, the windows, the features and the incidents."""
    with transaction() as connection:
        return HTMLResponse(page.render(connection), headers=page.HEADERS)


@app.get("/metrics", include_in_schema=False)
def metrics() -> Response:
    return Response(generate_latest(), headers={"content-type": CONTENT_TYPE_LATEST})


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
def ready() -> dict[str, str]:
    """The database answers and has the tables."""
    with transaction() as connection:
        connection.execute(observed.incidents.select().limit(1))
    return {"status": "ready"}


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
