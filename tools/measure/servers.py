"""Starts servers on free ports for measurements and tests: uvicorn, Redis and PostgreSQL.

Envoy is started by `tools.mesh.proxy`.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

from tools.measure.server import Server, free_port, serve, wait_until
from tools.run import postgres
from tools.run.binaries import find
from tools.run.processes import family_of, kill_all

STOP_SECONDS = 20
# What the servers of the patterns are started with.
UVICORN_OPTIONS = (
    *("--no-access-log", "--timeout-graceful-shutdown", "5"),
    *("--timeout-keep-alive", "65"),
)


def run_uvicorn(
    app: str,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    options: Sequence[str] = UVICORN_OPTIONS,
    ready: str = "/ready",
    port: int | None = None,
    cpus: set[int] | None = None,
    log: Path | None = None,
) -> AbstractContextManager[Server]:
    """Runs an ASGI application, `package.module:app`, until the end of the block.

    Args:
        app: the application, as `uvicorn` takes it.
        cwd: the directory in which the application is importable.
        env: settings, added to this process's environment.
        options: more options of uvicorn.
        ready: the path that answers 200 as soon as the server can be used.
        port: a free port unless it is given.
        cpus: the cores that the server may use.
        log: where its output goes; a temporary file unless it is given.

    Raises:
        ServerError: it ended before it was ready; the message holds the end of its log.
    """
    port = port or free_port()
    return serve(
        [sys.executable, "-m", "uvicorn", app, "--port", str(port), *options],
        cwd=cwd,
        env=env,
        ready_url=f"http://127.0.0.1:{port}{ready}",
        port=port,
        cpus=cpus,
        log=log,
    )


class Process:
    """A process that a measurement kills, suspends and starts again."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        log: Path,
        env: Mapping[str, str] | None = None,
        cpus: set[int] | None = None,
    ) -> None:
        self.command = command
        self.cwd = cwd
        self.log = log
        self.env = {**os.environ, **(env or {})}
        self.cpus = cpus
        self.start()

    def start(self) -> None:
        """Starts the process, anew if it has ended."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        if self.cpus is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self.process.pid, self.cpus)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Ends the process at once, whatever it is doing."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Asks the process to end, suspended or not, and returns its exit code."""
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class RedisServer(Process):
    """A Redis server that keeps its data in a directory and has every write on the disk."""

    def __init__(
        self,
        directory: Path,
        options: Sequence[str],
        port: int,
        env: Mapping[str, str] | None,
        cpus: set[int] | None,
    ) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        here = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
        append_only = ["--appendonly", "yes", "--appendfsync", "always"]
        command = [str(find("redis:8.0")), *here, *append_only, *options]
        super().__init__(command, cwd=directory, log=directory / "redis.log", env=env, cpus=cpus)

    def start(self) -> None:
        """Starts the server and waits until it has read its file."""
        super().start()
        wait_until(self.answers, f"Redis to answer ({self.log})")

    def answers(self) -> bool:
        """Tells whether the server takes commands; while it reads its file it refuses them."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def run_redis(
    directory: Path,
    *options: str,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    cpus: set[int] | None = None,
) -> Iterator[RedisServer]:
    """Runs a Redis server whose append-only file is in the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    server = RedisServer(directory, options, port or free_port(), env, cpus)
    try:
        yield server
    finally:
        server.kill()


class PostgresServer(Process):
    """A PostgreSQL server on files of its own, which it finds again after a kill."""

    def __init__(self, directory: Path, port: int, user: str, password: str, database: str) -> None:
        self.port = port
        self.user = user
        self.password = password
        self.database = database
        program = find("postgres:17")
        self.probe = [str(program.with_name("pg_isready")), "--quiet", "--host", "127.0.0.1"]
        self.probe += ["--port", str(port), "--username", user, "--dbname", database]
        # The program that starts it where there is no Docker.
        command = [sys.executable, postgres.__file__, os.devnull, str(program), "-p", str(port)]
        own = {
            "PGDATA": str(directory / "data"),
            "POSTGRES_USER": user,
            "POSTGRES_DB": database,
            "POSTGRES_PASSWORD": password,
        }
        super().__init__(command, cwd=directory, log=directory / "log", env=own)

    def start(self) -> None:
        """Starts the server and waits until it has read its log again."""
        super().start()
        wait_until(self.answers, f"PostgreSQL to answer ({self.log})")

    def answers(self) -> bool:
        """Tells whether the server takes connections."""
        return subprocess.run(self.probe, check=False).returncode == 0

    def kill(self) -> None:
        """Ends the server and its sessions at once, whatever they are in the middle of."""
        sessions = family_of(self.process.pid)
        super().kill()
        kill_all(sessions)


@contextmanager
def run_postgres(
    *,
    port: int | None = None,
    user: str = "postgres",
    password: str | None = None,
    database: str | None = None,
) -> Iterator[PostgresServer]:
    """Runs a PostgreSQL server on new files; without a password it has one that nobody knows."""
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        # PostgreSQL never runs as root, and as nobody it has to get here.
        Path(name).chmod(0o711)
        server = PostgresServer(
            Path(name), port or free_port(), user, password or uuid4().hex, database or user
        )
        try:
            yield server
        finally:
            server.kill()
