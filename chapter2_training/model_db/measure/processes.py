"""Starts PostgreSQL and the API on free ports, and kills them."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import psycopg2

from tools.measure.server import Server, free_port, serve, wait_until
from tools.run import postgres
from tools.run.binaries import find
from tools.run.processes import family_of, kill_all

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "chapter2_training.model_db"
USER = "model_db"


class Postgres:
    """A PostgreSQL server of our own, that can be killed and started again on its files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.password = uuid4().hex
        program = str(find("postgres:17"))
        # The same program that runs it where there is no Docker.
        self.command = [sys.executable, postgres.__file__, os.devnull, program]
        self.command += ["-p", str(self.port)]
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it has read its log again."""
        own = {
            "PGDATA": str(self.directory / "data"),
            "POSTGRES_USER": USER,
            "POSTGRES_DB": USER,
            "POSTGRES_PASSWORD": self.password,
        }
        with (self.directory / "log").open("ab") as output:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **own}, stdout=output, stderr=output
            )
        wait_until(self.answers, f"PostgreSQL to answer ({self.directory}/log)")

    def answers(self) -> bool:
        with suppress(psycopg2.OperationalError):
            self.execute("SELECT 1")
            return True
        return False

    def execute(self, statement: str, database: str = USER) -> None:
        """Runs a statement as a client of its own."""
        client = psycopg2.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password, dbname=database
        )
        client.autocommit = True
        try:
            client.cursor().execute(statement)
        finally:
            client.close()

    def change(self, database: dict[str, str], *statements: str) -> None:
        """Runs statements in the database of an API."""
        for statement in statements:
            self.execute(statement, database["DATABASE_URL"].rpartition("/")[2])

    def kill(self) -> None:
        """Ends the server and its sessions at once, whatever they are in the middle of."""
        sessions = family_of(self.process.pid)
        self.process.kill()
        self.process.wait()
        kill_all(sessions)

    def new_database(self) -> dict[str, str]:
        """Makes an empty database, and returns the settings of an API that uses it."""
        name = f"test_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return {
            "DATABASE_URL": f"postgresql+psycopg2://{USER}@127.0.0.1:{self.port}/{name}",
            "DATABASE_PASSWORD": self.password,
        }


@contextmanager
def run_postgres() -> Iterator[Postgres]:
    """Runs a PostgreSQL server on new files."""
    with tempfile.TemporaryDirectory(prefix="model-db-", ignore_cleanup_errors=True) as name:
        # PostgreSQL never runs as root, and as nobody it has to get here.
        Path(name).chmod(0o711)
        server = Postgres(Path(name))
        try:
            yield server
        finally:
            server.kill()


def migrate(database: dict[str, str]) -> str:
    """Makes the tables, as the service `migrate` does, and returns its log."""
    run = subprocess.run(
        [sys.executable, "-m", f"{PACKAGE}.app.migrate"],
        cwd=ROOT,
        env={**os.environ, **database},
        check=True,
        capture_output=True,
        text=True,
    )
    return run.stderr


@contextmanager
def run_api(
    database: dict[str, str], app: str = "app.main:app", ready: str = "/ready", **settings: str
) -> Iterator[Server]:
    """Runs the API, or one of baselines.py, with a database and other settings."""
    port = free_port()
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--port", str(port)]
    with serve(
        [
            sys.executable,
            "-m",
            "uvicorn",
            f"{PACKAGE}.{app}",
            *options,
            "--timeout-graceful-shutdown",
            "5",
        ],
        cwd=ROOT,
        ready_url=f"http://127.0.0.1:{port}{ready}",
        port=port,
        env={**database, **settings},
    ) as server:
        yield server
