"""Starts PostgreSQL and the API on free ports."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

import psycopg2

from tools.measure.server import Server
from tools.measure.servers import PostgresServer, run_uvicorn

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "chapter2_training.model_db"
USER = "model_db"


class Postgres(PostgresServer):
    """A PostgreSQL server of our own, with a database for each API that asks for one."""

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

    def new_database(self) -> dict[str, str]:
        """Makes an empty database, and returns the settings of an API that uses it."""
        name = f"test_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return {
            "DATABASE_URL": f"postgresql+psycopg2://{USER}@127.0.0.1:{self.port}/{name}",
            "DATABASE_PASSWORD": self.password,
        }


def run_postgres() -> Postgres:
    """Starts a PostgreSQL server on new files; a `with` stops it and removes them."""
    return Postgres(user=USER)


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


def run_api(
    database: dict[str, str], app: str = "app.main:app", ready: str = "/ready", **settings: str
) -> AbstractContextManager[Server]:
    """Runs the API, or one of baselines.py, with a database and other settings."""
    return run_uvicorn(f"{PACKAGE}.{app}", cwd=ROOT, ready=ready, env={**database, **settings})
