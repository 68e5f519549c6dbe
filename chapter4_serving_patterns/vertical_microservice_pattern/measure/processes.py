"""Runs the stages and the proxy, sends them rows, and asks the same models in one process."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import uvloop

from tools.measure.load import Request, Run, closed_loop
from tools.measure.server import Server
from tools.measure.servers import UVICORN_OPTIONS, guarded, run_uvicorn
from tools.measure.spans import Receiver

from ..predictor.model import Model
from ..train.digits import load
from ..train.stages import READERS, STAGES, both_ways

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
BODY = (HERE / "sample.json").read_bytes()
# While nothing hangs, nothing is late, however busy the machine is.
PATIENT = {"DEADLINE_SECONDS": "60"}
MIN_CONFIDENCE = 0.9
WIDTHS = {stage: 75 if stage == "second" else 64 for stage in STAGES}
NOTHING: Mapping[str, str] = {}

Services = dict[str, Server]


class Known(NamedTuple):
    """What the models say of rows in one process, and the stages that each row takes."""

    prediction: np.ndarray
    stages: list[list[str]]

    def needing(self, stage: str) -> list[int]:
        return [number for number, stages in enumerate(self.stages) if stage in stages]

    @property
    def calls_per_row(self) -> float:
        return sum(map(len, self.stages)) / len(self.stages)


def unseen_rows() -> tuple[np.ndarray, np.ndarray]:
    """Returns the 1,080 rows that no model has seen, an image and then the same turned."""
    images = load()
    order = np.arange(2 * len(images.x_test)).reshape(2, -1).T.ravel()
    return both_ways(images.x_test)[order], np.repeat(images.y_test, 2)


def in_one_process(rows: np.ndarray, min_confidence: float = MIN_CONFIDENCE) -> Known:
    """Asks the same models, all of them for all rows, and then takes what the chain would."""

    def run(stage: str, x: np.ndarray) -> np.ndarray:
        return Model(HERE / "models" / stage, WIDTHS[stage]).run(x.tolist())

    ways = run("orientation", rows)
    chosen = ways.argmax(axis=1)
    read = np.stack([run(reader, rows) for reader in READERS])[chosen, np.arange(len(rows))]
    again = run("second", np.hstack([rows, ways[:, 1:], read]))
    unsure = read.max(axis=1).astype(float) < min_confidence
    stages = [
        ["orientation", READERS[way], *(["second"] if more else [])]
        for way, more in zip(chosen, unsure, strict=True)
    ]
    return Known(np.where(unsure[:, None], again, read), stages)


def run_service(
    stage: str, variables: Mapping[str, str] = NOTHING, port: int | None = None
) -> AbstractContextManager[Server]:
    """Runs one stage, which counts its calls and may wait before it answers."""
    own = {"MODEL_DIRECTORY": str(HERE / "models" / stage), "FEATURES": str(WIDTHS[stage])}
    return run_uvicorn(
        f"{PACKAGE}.measure.slow:app",
        cwd=ROOT,
        env={**own, **variables},
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.predictor")],
        port=port,
    )


@contextmanager
def run_services(variables: Mapping[str, str] = NOTHING) -> Iterator[Services]:
    """Starts the four stages at the same time."""
    commands = [run_service(stage, variables) for stage in STAGES]
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        yield dict(zip(STAGES, pool.map(stack.enter_context, commands), strict=True))


def run_proxy(
    urls: Mapping[str, str], variables: Mapping[str, str] = NOTHING, *, control: bool = False
) -> AbstractContextManager[Server]:
    """Runs the proxy as it is shipped, or measure/baselines.py."""
    return run_uvicorn(
        f"{PACKAGE}.{'measure.baselines:app' if control else 'proxy.main:app'}",
        cwd=ROOT,
        env={"SERVICES": json.dumps(urls), **variables},
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.proxy")],
        # It is not ready without the stages.
        ready="/health",
    )


def traced_by(receiver: Receiver) -> dict[str, str]:
    """Returns the variables that send every span to a receiver, soon after its end."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def urls_of(services: Services) -> dict[str, str]:
    return {name: server.url for name, server in services.items()}


def bodies_of(rows: np.ndarray, rows_a_request: int = 1) -> list[bytes]:
    starts = range(0, len(rows), rows_a_request)
    parts = (rows[start : start + rows_a_request] for start in starts)
    return [json.dumps({"data": part.tolist()}).encode() for part in parts]


def send(
    server: Server, bodies: Sequence[bytes], callers: int = 8, deadline_seconds: float = 60
) -> Run:
    """Sends each body once; each caller waits for its answer."""
    load = closed_loop(
        [Request(f"{server.url}/predict", body) for body in bodies],
        connections=callers,
        count=len(bodies),
        deadline_seconds=deadline_seconds,
        keep_bodies=True,
    )
    return uvloop.run(load)


def answers_in(run: Run) -> list[dict[str, Any]]:
    """Returns the answers with the status 200."""
    bodies = zip(run.bodies or [], run.status_of, strict=True)
    return [json.loads(body) for body, status in bodies if status == 200]
