"""Starts uvicorn, Redis and PostgreSQL on free ports for measurements and tests.

`tools.mesh.proxy` starts Envoy.
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

from tools.measure.server import Server, serve, wait_until
from tools.run import postgres
from tools.run.binaries import find
from tools.run.ports import free_port
from tools.run.processes import family_of, kill_all

STOP_SECONDS = 20
# The options that the patterns start their servers with.
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

    `cwd` is the directory to import it from, `ready` the path that returns 200 once the server is
    ready, and `cpus` the cores that it may use. See `serve` for the rest.
    """
    port = port or free_port()
    return serve(
        uvicorn(app, port, cwd, options),
        cwd=cwd,
        env=env,
        ready_url=f"http://127.0.0.1:{port}{ready}",
        port=port,
        cpus=cpus,
        log=log,
    )


def uvicorn(app: str, port: int, cwd: Path, options: Sequence[str] = UVICORN_OPTIONS) -> list[str]:
    """Returns the command that serves an application on a local port, with its guard."""
    package = app.partition(":")[0].rpartition(".")[0]
    guard = (cwd / package.replace(".", "/") / "guard.py").exists()
    protocol = guarded(package) if guard else []
    return [sys.executable, "-m", "uvicorn", app, "--port", str(port), *options, *protocol]


def guarded(package: str) -> list[str]:
    """Returns the option of uvicorn that a Dockerfile sets by `UVICORN_HTTP`."""
    return ["--http", f"{package}.guard:BoundedProtocol"]


class Process:
    """A process that can be killed, suspended and restarted; the end of a `with` kills it."""

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
        """Starts the process, or restarts it after it has ended."""
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
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Sends SIGTERM, resumes the process if it is suspended, and returns its exit code."""
        self.process.terminate()
        self.process.send_signal(signal.SIGCONT)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class RedisServer(Process):
    """A Redis server that writes to disk before it responds, as in the patterns."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        cpus: set[int] | None = None,
    ) -> None:
        """Starts the server, by default on a free port, with its data in the directory."""
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        directory.mkdir(parents=True, exist_ok=True)
        here = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(directory)]
        append_only = ["--appendonly", "yes", "--appendfsync", "always"]
        command = [str(find("redis:8.0")), *here, *append_only, *options]
        super().__init__(command, cwd=directory, log=directory / "redis.log", env=env, cpus=cpus)

    def start(self) -> None:
        """Starts the server and waits until it has loaded its data."""
        super().start()
        wait_until(self.answers, f"Redis to respond ({self.log})")

    def answers(self) -> bool:
        """Tells whether the server accepts commands, which it does once it has loaded its data."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith(b"+PONG")
        except OSError:
            return False


class PostgresServer(Process):
    """A PostgreSQL server with a new data directory, which survives a restart."""

    def __init__(
        self,
        *,
        port: int | None = None,
        user: str = "postgres",
        password: str | None = None,
        database: str | None = None,
    ) -> None:
        """Starts the server; the default password is random."""
        self.port = port or free_port()
        self.user = user
        self.password = password or uuid4().hex
        self.database = database or user
        self.files = tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True)
        directory = Path(self.files.name)
        # PostgreSQL may run as the user nobody, who needs access.
        directory.chmod(0o711)
        program = find("postgres:17")
        self.probe = [str(program.with_name("pg_isready")), "--quiet", "--host", "127.0.0.1"]
        self.probe += ["--port", str(self.port), "--username", user, "--dbname", self.database]
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
        """Starts the server and waits until it has recovered."""
        super().start()
        wait_until(self.answers, f"PostgreSQL to respond ({self.log})")

    def answers(self) -> bool:
        """Tells whether the server accepts connections."""
        return subprocess.run(self.probe, check=False).returncode == 0

    def kill(self) -> None:
        """Kills the server and its sessions."""
        sessions = family_of(self.process.pid)
        super().kill()
        kill_all(sessions)
