"""Asks both versions once for 10,000 simulated requests, and serves what each release costs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel

from .docs import add_docs
from .model import Model
from .procedures import PROCEDURES, Answers, Outcome
from .route import JsonRoute, refuse_invalid
from .schema import FEATURES, UNAVAILABLE, Refusal
from .settings import Settings
from .traffic import production

settings = Settings()
REQUESTS, SEED = 10_000, 0
# Users send what production() simulates, or the rows of the test set as they are.
Traffic = Literal["shifted", "unshifted"]
REFUSALS = {422: {"model": Refusal, "description": "The traffic is unknown"}, **UNAVAILABLE}
UNKNOWN = {404: {"model": Refusal, "description": "The procedure is unknown"}, **REFUSALS}


class Replay(BaseModel):
    """How often each version is right, and what each procedure costs."""

    live_accuracy: float
    candidate_accuracy: float
    procedures: dict[str, Outcome]


def ask(traffic: Traffic) -> Answers:
    """Asks both versions for the same requests: held-out rows, drawn with replacement."""
    held_out = np.load(settings.held_out_file)
    rows, truth = held_out["rows"], held_out["labels"]
    drawn = np.random.default_rng(SEED).integers(0, len(rows), REQUESTS)
    if traffic == "shifted":
        sent, which = production(rows[drawn], SEED), np.arange(REQUESTS)
    else:
        # A row that is sent unchanged gets the same answer each time.
        sent, which = rows, drawn
    live = labels(settings.model_directory, sent)[which]
    candidate = labels(settings.candidate_directory, sent)[which]
    return Answers(live == truth[drawn], candidate == truth[drawn], live == candidate)


def labels(directory: Path, rows: NDArray[np.float32]) -> NDArray[np.intp]:
    """Returns the index of each label, in batches: all rows at once take 88 MB more."""
    model = Model(directory, FEATURES)
    batches = np.array_split(rows, max(1, len(rows) // 100))
    return np.concatenate([model.run(batch.tolist()).argmax(axis=1) for batch in batches])


def replay(traffic: Traffic) -> Replay:
    answers = ask(traffic)
    return Replay(
        live_accuracy=answers.live_right.mean(),
        candidate_accuracy=answers.candidate_right.mean(),
        procedures={name: release(answers, SEED) for name, release in PROCEDURES.items()},
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Replays before the port opens."""
    app.state.replays = {traffic: replay(traffic) for traffic in ("shifted", "unshifted")}
    yield


app = FastAPI(
    title="offline_only_antipattern: procedures",
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


@app.get("/procedures", tags=["procedures"], responses=REFUSALS)
async def procedures(request: Request, traffic: Traffic = "shifted") -> Replay:
    """Returns what all three cost for this simulated traffic."""
    found: Replay = request.app.state.replays[traffic]
    return found


@app.get("/procedures/{name}", tags=["procedures"], responses=UNKNOWN)
async def procedure(request: Request, name: str, traffic: Traffic = "shifted") -> Outcome:
    """Returns what one of them costs."""
    found: Replay = request.app.state.replays[traffic]
    if name not in found.procedures:
        raise HTTPException(404, f"the procedures are {', '.join(found.procedures)}")
    return found.procedures[name]


@app.get("/health", tags=["health"])
async def health() -> dict[str, str]:
    """Reports that the process is alive."""
    return {"status": "ok", "health": "ok"}


@app.get("/ready", tags=["health"], responses=UNAVAILABLE)
async def ready() -> dict[str, str]:
    """The port is closed until everything is replayed."""
    return {"status": "ready"}


# Routes are tried in order, and FastAPI puts those of the documentation first.
app.router.routes.sort(key=lambda route: not isinstance(route, APIRoute))
