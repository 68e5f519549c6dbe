"""Runs web and predictor on cores of their own, and sends them the sample."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import uvloop

from tools.measure.load import Request, Run, closed_loop
from tools.measure.server import Server
from tools.measure.servers import UVICORN_OPTIONS, guarded, run_uvicorn

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
BODY = (HERE / "sample.json").read_bytes()
DEADLINE_SECONDS = 0.5
# Where there are two cores, predictor has one; web and the load generator share the other.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def run_predictor(
    models: Path, app: str = "measure.hanging:app", port: int | None = None
) -> AbstractContextManager[Server]:
    """Runs predictor with the model of a directory."""
    return run_uvicorn(
        f"{PACKAGE}.{app}",
        cwd=ROOT,
        env={"MODEL_DIRECTORY": str(models)},
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.predictor")],
        port=port,
        cpus={CORES[0]},
    )


def run_web(
    predictor_url: str,
    client: str = "",
    deadline_seconds: float = DEADLINE_SECONDS,
    **settings: str,
) -> AbstractContextManager[Server]:
    """Runs web, as it is shipped or with another client of measure/baselines.py."""
    env = {"PREDICTOR_URL": predictor_url, "DEADLINE_SECONDS": str(deadline_seconds)}
    app = "measure.baselines:app" if client else "web.main:app"
    return run_uvicorn(
        f"{PACKAGE}.{app}",
        cwd=ROOT,
        env=env | {"CLIENT": client} | settings,
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.web")],
        cpus={CORES[-1]},
    )


def send(
    url: str, callers: int, count: int, deadline_seconds: float = 30, *, keep_bodies: bool = False
) -> Run:
    """Sends the sample `count` times; each caller waits for its answer."""
    load = closed_loop(
        Request(url, BODY),
        connections=callers,
        count=count,
        deadline_seconds=deadline_seconds,
        keep_bodies=keep_bodies,
    )
    return uvloop.run(load)
