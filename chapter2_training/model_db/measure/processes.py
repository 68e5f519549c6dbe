"""Starts PostgreSQL and the API on free ports."""

import os
import subprocess
import sys
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2

from tools.measure.server import Server
from tools.measure.servers import PostgresServer, run_uvicorn

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "chapter2_training.model_db"
USER = "model_db"


class Postgres(PostgresServer):
    """A private PostgreSQL server with a database for each API."""

    def connect(self, database: str = USER) -> Any:
        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user=USER, password=self.password, dbname=database
        )

    def execute(self, statement: str, database: str = USER) -> None:
        """Runs a statement on a new connection."""
        with closing(self.connect(database)) as client:
            client.autocommit = True
            client.cursor().execute(statement)

    def select(self, database: dict[str, str], statement: str) -> list[tuple[Any, ...]]:
        """Returns the rows of a query in the database of an API."""
        with closing(self.connect(name_of(database))) as client:
            cursor = client.cursor()
            cursor.execute(statement)
            return list(cursor.fetchall())

    def change(self, database: dict[str, str], *statements: str) -> None:
        """Runs statements in the database of an API."""
        for statement in statements:
            self.execute(statement, name_of(database))

    def new_database(self, template: dict[str, str] | None = None) -> dict[str, str]:
        """Creates a database, empty or as a copy, and returns the API settings for it."""
        name = f"test_{uuid4().hex}"
        copied = f" TEMPLATE {name_of(template)}" if template else ""
        self.execute(f"CREATE DATABASE {name}{copied}")
        return {
            "DATABASE_URL": f"postgresql+psycopg2://{USER}@127.0.0.1:{self.port}/{name}",
            "DATABASE_PASSWORD": self.password,
        }


def name_of(database: dict[str, str]) -> str:
    return database["DATABASE_URL"].rpartition("/")[2]


def run_postgres() -> Postgres:
    """Starts a PostgreSQL server on new files; the end of a `with` stops it and removes them."""
    return Postgres(user=USER)


def migrate(database: dict[str, str]) -> str:
    """Runs the migrations, as the service `migrate` does, and returns its log."""
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
    """Runs the API, or a control from baselines.py, with a database and settings."""
    return run_uvicorn(f"{PACKAGE}.{app}", cwd=ROOT, ready=ready, env={**database, **settings})
