"""Starts the pattern's processes on free ports, and kills them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from redis import Redis, RedisError

from tools.measure.server import Server, free_port, serve, wait_until
from tools.run.binaries import find

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "chapter4_serving_patterns.asynchronous_pattern"
DEADLINE_SECONDS = 20


class Child:
    """A process of ours that can be killed and started again."""

    def __init__(
        self, command: list[str], directory: Path, env: Mapping[str, str], cpus: set[int] | None
    ) -> None:
        self.command = command
        self.log = directory / f"{uuid4().hex}.log"
        self.env = {**os.environ, **env}
        self.cpus = cpus
        self.start()

    def start(self) -> None:
        """Starts the process, anew if it has ended."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.env, stdout=output, stderr=output
            )
        if self.cpus is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, self.cpus)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Ends the process at once, whatever it holds."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Asks the process to end, suspended or not, and returns its exit code."""
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class RedisChild(Child):
    """A Redis server with the options of docker-compose.yml, on a free port."""

    def __init__(
        self,
        directory: Path,
        options: list[str],
        cpus: set[int] | None,
        env: Mapping[str, str] | None,
    ) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client: Any = Redis.from_url(self.url)
        here = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)]
        append_only = ["--appendonly", "yes", "--appendfsync", "always"]
        server = str(find("redis:8.0"))
        super().__init__([server, *here, *append_only, *options], directory, env or {}, cpus)

    def start(self) -> None:
        """Starts the server and waits until it has read its file."""
        super().start()
        wait_until(self.answers, f"Redis to answer ({self.log})")

    def answers(self) -> bool:
        with suppress(RedisError):
            return bool(self.client.ping())
        return False


@contextmanager
def run_redis(
    directory: Path,
    *options: str,
    cpus: set[int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[RedisChild]:
    """Runs a Redis server whose append-only file is in the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    redis = RedisChild(directory, list(options), cpus, env)
    try:
        yield redis
    finally:
        redis.client.close()
        redis.kill()


@contextmanager
def run_api(
    redis_url: str,
    directory: Path,
    cpus: set[int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Runs the API with settings from `env`."""
    port = free_port()
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--port", str(port)]
    with serve(
        [sys.executable, "-m", "uvicorn", f"{PACKAGE}.app.main:app", *options],
        cwd=ROOT,
        ready_url=f"http://127.0.0.1:{port}/health",
        port=port,
        env={"REDIS_URL": redis_url, **(env or {})},
        cpus=cpus,
        log=directory / f"{uuid4().hex}.log",
    ) as server:
        yield server


@contextmanager
def run_workers(
    count: int,
    redis_url: str,
    directory: Path,
    command: Sequence[str] = (f"{PACKAGE}.app.worker",),
    cpus: set[int] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[list[Child]]:
    """Runs workers, with settings from `env`, and waits until each has loaded its model."""
    python = [sys.executable, "-m", *command]
    alive_files = [directory / f"{uuid4().hex}.alive" for _ in range(count)]
    workers = []
    try:
        for alive_file in alive_files:
            own = {"REDIS_URL": redis_url, "ALIVE_FILE": str(alive_file), **(env or {})}
            workers.append(Child(python, directory, own, cpus))
        wait_until(lambda: all(file.exists() for file in alive_files), f"workers in {directory}")
        yield workers
    finally:
        for worker in workers:
            worker.kill()
