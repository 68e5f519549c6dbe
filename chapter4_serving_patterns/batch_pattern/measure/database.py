"""Starts PostgreSQL with the items of this pattern, and runs jobs on it."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import psutil
from pydantic import SecretStr
from sqlalchemy import text

from tools.measure.servers import PostgresServer
from tools.run.processes import group_of

from ..app.seed import seed
from ..app.settings import Settings
from ..app.tables import connect

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = "chapter4_serving_patterns.batch_pattern"
JOB = f"{PACKAGE}.app.job"
LOOK_SECONDS = 0.05


class Ended(NamedTuple):
    """A job that has ended, and what it has left."""

    code: int
    processes_left: int
    output: str


class Database(PostgresServer):
    """A PostgreSQL server with items, and settings for everything that uses them."""

    def __init__(self, models: Path, rows: int, **others: str) -> None:
        super().__init__(user="batch")
        self.variables = {
            "MODEL_DIRECTORY": str(models),
            "DATABASE_URL": f"postgresql+psycopg2://batch@127.0.0.1:{self.port}/batch",
            "DATABASE_PASSWORD": self.password,
            **others,
        }
        self.settings = Settings(
            model_directory=models,
            database_url=self.variables["DATABASE_URL"],
            database_password=SecretStr(self.password),
            seed_rows=rows,
        )
        self.engine = connect(self.settings)
        seed(self.settings)

    def value(self, query: str, **values: Any) -> Any:
        """Returns the first value of a query, after what it changes was committed."""
        with self.engine.begin() as connection:
            found = connection.execute(text(query), values)
            return found.scalar() if found.returns_rows else None

    def forget(self) -> None:
        """Deletes all jobs and predictions."""
        self.value("TRUNCATE predictions, attempts, chunks, jobs")

    def start_job(
        self, *command: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a job, or another program, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", *(command or (JOB,))],
            cwd=ROOT,
            env={**os.environ, **self.variables, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run_job(self, *command: str, env: Mapping[str, str] | None = None) -> Ended:
        return end(self.start_job(*command, env=env))


def end(process: subprocess.Popen[bytes]) -> Ended:
    """Waits for a job."""
    output, _ = process.communicate()
    return Ended(process.returncode, len(group_of(process.pid)), output.decode())


def peak_memory_mb(process: subprocess.Popen[bytes]) -> float:
    """Waits for a job, and returns the most memory in MiB that it was seen with."""
    highest = 0.0
    while process.poll() is None:
        with suppress(psutil.Error):
            highest = max(highest, psutil.Process(process.pid).memory_info().rss / 2**20)
        sleep(LOOK_SECONDS)
    require_done([end(process)])
    return highest


def require_done(ended: Sequence[Ended]) -> None:
    """Ends the measurement if a job has failed."""
    for each in ended:
        if each.code:
            raise SystemExit(f"error: a job ended with {each.code}: {each.output[-2_000:]}")
