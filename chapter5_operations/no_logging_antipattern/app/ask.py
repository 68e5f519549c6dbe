"""Answers ten questions of an operator about what one arm has left."""

import asyncio
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from .docs import add_docs
from .evidence import QUESTIONS, Evidence, ask
from .route import JsonRoute, refuse_invalid
from .schema import UNAVAILABLE, Refusal
from .settings import Settings

ARMS = ("good", "bad")
REFUSALS: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "There is no such arm or question"},
    422: {"model": Refusal, "description": "The request is invalid"},
    **UNAVAILABLE,
}

settings = Settings()
# One at a time: each reads the whole log into memory.
turn = asyncio.Lock()
app = FastAPI(
    title="no_logging_antipattern: operator",
    description=__doc__,
    version="0.1.0",
    docs_url=None,
    redoc_url=None,
    # Without this, FastAPI looks for a tracer on every request.
    telemetry={"tracing": False, "metrics": False, "logs": False},
)
app.router.route_class = JsonRoute
app.exception_handler(RequestValidationError)(refuse_invalid)
add_docs(app)


@app.get("/answers", tags=["answers"], responses=REFUSALS)
async def answers(arm: str, job: str | None = None) -> Evidence:
    """Answers all questions; `job` is the ID of an answer, for the question of that name."""
    return await answered(arm, [*QUESTIONS], job)


@app.get("/answers/{question}", tags=["answers"], responses=REFUSALS)
async def answer(question: str, arm: str, job: str | None = None) -> Evidence:
    """Answers one question."""
    if question not in QUESTIONS:
        raise HTTPException(404, f"there is no such question; choose {', '.join(QUESTIONS)}")
    return await answered(arm, [question], job)


async def answered(arm: str, names: list[str], job: str | None) -> Evidence:
    if arm not in ARMS:
        raise HTTPException(404, f"there is no such arm; choose {', '.join(ARMS)}")
    async with turn:
        return await asyncio.to_thread(ask, settings.evidence_directory / arm, names, job)


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"])
async def ready() -> dict[str, str]:
    """Reports that the process answers; without a log, it says so."""
    return {"status": "ready"}


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
