"""Runs the three services and the proxy, and sends them requests."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop

from tools.measure.load import Request, Run, closed_loop
from tools.measure.server import Server
from tools.measure.servers import UVICORN_OPTIONS, guarded, run_uvicorn
from tools.measure.spans import Receiver

from ..train.iris import LABELS

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
BODY = (HERE / "sample.json").read_bytes()
ONE_ROW = json.dumps({"data": json.loads(BODY)["data"][:1]}).encode()
# While nothing hangs, nothing is late, however busy the machine is.
PATIENT = {"DEADLINE_SECONDS": "60"}
NOTHING: Mapping[str, str] = {}

Services = dict[str, Server]


def run_service(
    name: str, variables: Mapping[str, str] = NOTHING, port: int | None = None
) -> AbstractContextManager[Server]:
    """Runs one predictor, which counts its calls and may wait or compute before it answers."""
    return run_uvicorn(
        f"{PACKAGE}.measure.slow:app",
        cwd=ROOT,
        env={"MODEL_DIRECTORY": str(HERE / "models" / name), **variables},
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.predictor")],
        port=port,
    )


@contextmanager
def run_all(
    commands: Mapping[str, AbstractContextManager[Server]],
) -> Iterator[dict[str, Server]]:
    """Starts servers at the same time."""
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        started = pool.map(stack.enter_context, commands.values())
        yield dict(zip(commands, started, strict=True))


def run_services(
    waits_ms: Sequence[float] = (0, 0, 0), variables: Mapping[str, str] = NOTHING
) -> AbstractContextManager[Services]:
    """Runs the three services, each with its own wait."""
    return run_all(
        {
            name: run_service(name, {"WAIT_MS": str(wait_ms), **variables})
            for name, wait_ms in zip(LABELS, waits_ms, strict=True)
        }
    )


def run_proxy(
    urls: Mapping[str, str], arm: str = "", variables: Mapping[str, str] = NOTHING
) -> AbstractContextManager[Server]:
    """Runs the proxy as it is shipped, or an arm of measure/baselines.py."""
    return run_uvicorn(
        f"{PACKAGE}.{'measure.baselines:app' if arm else 'proxy.main:app'}",
        cwd=ROOT,
        env={"SERVICES": json.dumps(urls), "ARM": arm, **variables},
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.proxy")],
        # It is not ready without a service.
        ready="/health",
    )


def traced_by(receiver: Receiver) -> dict[str, str]:
    """Returns the variables that send every span to a receiver, soon after its end."""
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}


def urls_of(services: Services) -> dict[str, str]:
    return {name: server.url for name, server in services.items()}


def send(
    url: str, count: int, callers: int = 8, body: bytes = ONE_ROW, deadline_seconds: float = 60
) -> Run:
    """Sends the same body `count` times; each caller waits for its answer."""
    load = closed_loop(
        Request(url, body),
        connections=callers,
        count=count,
        deadline_seconds=deadline_seconds,
        keep_bodies=True,
    )
    return uvloop.run(load)


def answers_in(run: Run) -> list[dict[str, Any]]:
    """Returns the answers with the status 200."""
    bodies = zip(run.bodies or [], run.status_of, strict=True)
    return [json.loads(body) for body, status in bodies if status == 200]
