# Copied from chapter4_serving_patterns/asynchronous_pattern/measure/processes.py with asynchronous_pattern->sync_async_pattern
"""Starts Redis, the API and workers of this pattern on free ports."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis import Redis

from tools.measure.server import Server, wait_until
from tools.measure.servers import Process, RedisServer, run_uvicorn

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "chapter4_serving_patterns.sync_async_pattern"


class Queue(RedisServer):
    """A Redis server with the options of docker-compose.yml, and a client to inspect it."""

    def __enter__(self) -> "Queue":
        self.client: Any = Redis.from_url(self.url)
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self.client.close()
        super().__exit__()


def run_api(
    redis_url: str,
    directory: Path,
    cpus: set[int] | None = None,
    env: Mapping[str, str] | None = None,
) -> AbstractContextManager[Server]:
    """Runs the API with settings from `env`."""
    return run_uvicorn(
        f"{PACKAGE}.app.main:app",
        cwd=ROOT,
        ready="/health",
        env={"REDIS_URL": redis_url, **(env or {})},
        cpus=cpus,
        log=directory / f"{uuid4().hex}.log",
    )


@contextmanager
def run_workers(
    count: int,
    redis_url: str,
    directory: Path,
    command: Sequence[str] = (f"{PACKAGE}.app.worker",),
    cpus: set[int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[list[Process]]:
    """Runs workers, with settings from `env`, and waits until each has loaded its model."""
    python = [sys.executable, "-m", *command]
    alive_files = [directory / f"{uuid4().hex}.alive" for _ in range(count)]
    with ExitStack() as stack:
        workers = []
        for alive_file in alive_files:
            own = {"REDIS_URL": redis_url, "ALIVE_FILE": str(alive_file), **(env or {})}
            log = alive_file.with_suffix(".log")
            worker = Process(python, cwd=ROOT, log=log, env=own, cpus=cpus)
            workers.append(stack.enter_context(worker))
        wait_until(lambda: all(file.exists() for file in alive_files), f"workers in {directory}")
        yield workers
