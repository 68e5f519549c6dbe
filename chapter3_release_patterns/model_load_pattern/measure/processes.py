"""Starts the store and replicas on free ports."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tools.measure.server import Server, serve
from tools.measure.servers import run_uvicorn, uvicorn
from tools.run.ports import free_port

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "chapter3_release_patterns.model_load_pattern"
# The network latency between a cluster and its model store, for slow_store in baselines.py.
STORE_DELAY_SECONDS = 0.3
INIT_STEP = [sys.executable, "-m", f"{PACKAGE}.app.load"]


@contextmanager
def run_store(directory: Path, app: str = "app.store:app") -> Iterator[str]:
    """Serves a directory over HTTP and yields its URL."""
    env = {"STORE_DIRECTORY": str(directory), "DELAY_SECONDS": str(STORE_DELAY_SECONDS)}
    with run_uvicorn(f"{PACKAGE}.{app}", cwd=ROOT, env=env) as server:
        yield server.url


def run_load(
    environment: Mapping[str, str], deadline_seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs only the init step; exceeding the deadline is an error."""
    return subprocess.run(
        INIT_STEP,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline_seconds,
    )


def replica(
    environment: Mapping[str, str], app: str = "app.main:app", *, init_step: bool = True
) -> AbstractContextManager[Server]:
    """Runs the init step and, if it succeeds, the server, as a pod does.

    Raises:
        ServerError: it exited before it was ready; the message contains the end of its log.
    """
    port = int(environment.get("PORT", free_port()))
    server = ["exec", *uvicorn(f"{PACKAGE}.{app}", port, ROOT)]
    steps = [INIT_STEP, server] if init_step else [server]
    return serve(
        ["sh", "-c", " && ".join(map(shlex.join, steps))],
        cwd=ROOT,
        ready_url=f"http://127.0.0.1:{port}/ready",
        port=port,
        env=environment,
    )
