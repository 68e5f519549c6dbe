"""Starts servers on free ports for measurements and tests: uvicorn, Redis and PostgreSQL.

Envoy is started by `tools.mesh.proxy`.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self
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
        [*uvicorn(app, port, options), *protocol_of(app, cwd)],
        cwd=cwd,
        env=env,
        ready_url=f"http://127.0.0.1:{port}{ready}",
        port=port,
        cpus=cpus,
        log=log,
    )


def uvicorn(app: str, port: int, options: Sequence[str] = UVICORN_OPTIONS) -> list[str]:
    """Returns the command that serves an application on a port of this machine."""
    return [sys.executable, "-m", "uvicorn", app, "--port", str(port), *options]


def protocol_of(app: str, cwd: Path) -> list[str]:
    """Returns the option that names the protocol in the `guard.py` beside an application, if any.

    A Dockerfile names it by `UVICORN_HTTP`.
    """
    package = app.partition(":")[0].rpartition(".")[0]
    if (cwd / package.replace(".", "/") / "guard.py").exists():
        return ["--http", f"{package}.guard:BoundedProtocol"]
    return []


class Process:
    """A process that is killed, suspended and started again, and gone at the end of a `with`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        log: Path,
        env: Mapping[str, str] | None = None,
        cpus: set[int] | None = None,
    ) -> None:
        """Starts the process; `env` is added to this process's environment."""
        self.command = command
        self.cwd = cwd
        self.log = log
        self.env = {**os.environ, **(env or {})}
        self.cpus = cpus
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

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
    """A Redis server that writes everything to a file before it answers, as the patterns do."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        cpus: set[int] | None = None,
    ) -> None:
        """Starts the server on a free port unless it is given, with its file in the directory."""
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        directory.mkdir(parents=True, exist_ok=True)
        here = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)]
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


class PostgresServer(Process):
    """A PostgreSQL server on new files, which it finds again when it is started after a kill."""

    def __init__(
        self,
        *,
        port: int | None = None,
        user: str = "postgres",
        password: str | None = None,
        database: str | None = None,
    ) -> None:
        """Starts the server; without a password it gets one that nobody knows."""
        self.port = port or free_port()
        self.user = user
        self.password = password or uuid4().hex
        self.database = database or user
        self.files = tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True)
        directory = Path(self.files.name)
        # PostgreSQL never runs as root, and as nobody it has to get here.
        directory.chmod(0o711)
        program = find("postgres:17")
        self.probe = [str(program.with_name("pg_isready")), "--quiet", "--host", "127.0.0.1"]
        self.probe += ["--port", str(self.port), "--username", user, "--dbname", self.database]
        # The program that starts it where there is no Docker.
        command = [sys.executable, postgres.__file__, os.devnull, str(program)]
        own = {
            "PGDATA": str(directory / "data"),
            "POSTGRES_USER": user,
            "POSTGRES_DB": self.database,
            "POSTGRES_PASSWORD": self.password,
        }
        super().__init__(
            [*command, "-p", str(self.port)], cwd=directory, log=directory / "log", env=own
        )

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.files.cleanup()

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
