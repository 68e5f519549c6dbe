"""Runs the models and the proxy, writes parameters, and sends requests."""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import uvloop
import yaml

from tools.measure.load import Request, Run, closed_loop
from tools.measure.server import Server, wait_until
from tools.measure.servers import UVICORN_OPTIONS, guarded, run_uvicorn
from tools.mesh.proxy import fetch

from ..app.parameters import read
from ..train.iris import LABELS

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
MODELS = HERE / "models"
SHIPPED = HERE / "parameters/parameters.yml"
BODY = (HERE / "sample.json").read_bytes()
# While callers wait, a model is never late, however busy the machine is.
PATIENT = {"timeout_seconds": 60}


def run_model(
    name: str, models: Path = MODELS, port: int | None = None, copies: int = 1
) -> AbstractContextManager[Server]:
    """Runs one model, which counts its calls and computes each row several times."""
    return run_uvicorn(
        f"{PACKAGE}.measure.counting:app",
        cwd=ROOT,
        env={"MODEL_DIRECTORY": str(models / name), "COPIES": str(copies)},
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.app")],
        port=port,
    )


@contextmanager
def run_models(
    models: Path = MODELS, copies: Sequence[int] = (1, 1, 1)
) -> Iterator[dict[str, Server]]:
    """Starts the three models at the same time."""
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        each = zip(LABELS, copies, strict=True)
        started = [run_model(name, models, copies=times) for name, times in each]
        yield dict(zip(LABELS, pool.map(stack.enter_context, started), strict=True))


def run_proxy(
    urls: Mapping[str, str],
    file: Path,
    app: str = "app.main:app",
    port: int | None = None,
    **settings: str,
) -> AbstractContextManager[Server]:
    """Runs the proxy as it is shipped, or as measure/baselines.py changes it."""
    env = {"MODEL_URLS": json.dumps(urls), "PARAMETERS_FILE": str(file)}
    return run_uvicorn(
        f"{PACKAGE}.{app}",
        cwd=ROOT,
        env=env | settings,
        options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.app")],
        port=port,
    )


def urls_of(models: Mapping[str, Server]) -> dict[str, str]:
    return {name: server.url for name, server in models.items()}


def write(path: Path, default: Mapping[str, Any] = PATIENT, **changes: Any) -> str:
    """Replaces a file of parameters as an editor does, and returns the new version.

    It holds what is shipped with these changes; those of a model are added to its own.
    """
    parameters = yaml.safe_load(SHIPPED.read_text("utf-8"))
    parameters["default"] |= default
    parameters["stop"] = changes.pop("stop", False)
    for name, change in changes.items():
        parameters["models"][name] |= change
    partial = path.with_suffix(".partial")
    partial.write_text(yaml.safe_dump(parameters), "utf-8")
    partial.replace(path)
    return read(path, LABELS).version


def wait_for(proxy: Server, version: str) -> None:
    """Waits until a version is in force."""
    wait_until(lambda: fetch(f"{proxy.url}/parameters")["version"] == version, version)


def send(url: str, count: int, connections: int = 4, body: bytes = BODY) -> Run:
    """Sends the same body `count` times; each connection waits for its answers."""
    load = closed_loop(
        Request(url, body),
        connections=connections,
        count=count,
        deadline_seconds=60,
        keep_bodies=True,
    )
    return uvloop.run(load)


def answers_in(run: Run) -> list[dict[str, Any]]:
    return [json.loads(body) for body in run.bodies or [] if body]
