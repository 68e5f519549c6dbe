"""Runs prep and pred, and sends pictures to prep."""

import base64
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from tools.measure.load import Request, Run, closed_loop
from tools.measure.server import Server
from tools.measure.servers import UVICORN_OPTIONS, guarded, run_uvicorn

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
MODELS = HERE / "models"
PICTURES_AT_ONCE, LABELS = 16, 10


def run_pred(
    models: Path = MODELS, app: str = "pred.main:app", port: int | None = None
) -> AbstractContextManager[Server]:
    """Runs pred with the model of a directory."""
    return run_uvicorn(
        f"{PACKAGE}.{app}",
        cwd=ROOT,
        env={"MODEL_DIRECTORY": str(models)},
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.pred")],
        port=port,
    )


def run_prep(
    pred_url: str,
    models: Path = MODELS,
    app: str = "prep.main:app",
    ready: str = "/ready",
    **settings: str,
) -> AbstractContextManager[Server]:
    """Runs prep with the preprocessing of a directory."""
    env = {"PRED_URL": pred_url, "MODEL_DIRECTORY": str(models), "DEADLINE_SECONDS": "60"}
    return run_uvicorn(
        f"{PACKAGE}.{app}",
        cwd=ROOT,
        env=env | settings,
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.prep")],
        ready=ready,
    )


def json_of(pictures: Sequence[bytes]) -> bytes:
    """Returns the body of a request with these pictures."""
    return json.dumps({"data": [base64.b64encode(each).decode() for each in pictures]}).encode()


def send(
    requests: Sequence[Request], count: int, connections: int = 2, *, keep_bodies: bool = False
) -> Run:
    load = closed_loop(
        requests, connections=connections, count=count, deadline_seconds=60, keep_bodies=keep_bodies
    )
    return uvloop.run(load)


def predict_all(prep: Server, pictures: Sequence[bytes]) -> NDArray[np.float32]:
    """Returns the probabilities of all pictures; NaN where prep does not answer."""
    starts = range(0, len(pictures), PICTURES_AT_ONCE)
    chunks = [pictures[start : start + PICTURES_AT_ONCE] for start in starts]
    requests = [Request(f"{prep.url}/predict", json_of(chunk)) for chunk in chunks]
    run = send(requests, len(requests), keep_bodies=True)
    answers = zip(chunks, run.status_of, run.bodies or [], strict=True)
    return np.concatenate(
        [
            json.loads(body)["prediction"] if status == 200 else [[np.nan] * LABELS] * len(chunk)
            for chunk, status, body in answers
        ]
    ).astype(np.float32)
