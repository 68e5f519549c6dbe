# Copied from chapter5_operations/prediction_log_pattern/measure/processes.py with the reader of this pattern->the report of this pattern, The service `log`.->The service `report`., class Reader->class Reporter, app.read:app->app.report:app
"""Starts PostgreSQL, the API, the shipper and the report of this pattern on free ports."""

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import sleep
from typing import Any
from uuid import uuid4

from pydantic import SecretStr
from sqlalchemy import text

from tools.measure.load import Request, Run, closed_loop
from tools.measure.server import answer_of, wait_until
from tools.measure.servers import PostgresServer, Process
from tools.run.ports import free_port

from ..app.database import connect
from ..app.settings import Settings
from ..app.ship import ship_all
from ..app.tables import keep_days

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
LOGGED = ("--http", f"{PACKAGE}.app.refusals:LoggedProtocol")
BODY = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
CLIENTS = 8


class Database(PostgresServer):
    """A PostgreSQL server with the tables, and settings for everything that uses them."""

    def __init__(self) -> None:
        super().__init__(user="records")
        url = f"postgresql+psycopg2://records@127.0.0.1:{self.port}/records"
        self.variables = {"DATABASE_URL": url, "DATABASE_PASSWORD": self.password}
        self.settings = Settings(database_url=url, database_password=SecretStr(self.password))
        self.engine = connect(self.settings)
        with self.engine.connect() as connection:
            keep_days(connection, self.settings.retention_days)

    def value(self, query: str, **values: Any) -> Any:
        """Returns the first value of a query, after what it changes was committed."""
        with self.engine.begin() as connection:
            found = connection.execute(text(query), values)
            return found.scalar() if found.returns_rows else None

    def rows(self, query: str) -> list[Any]:
        with self.engine.begin() as connection:
            return [*connection.execute(text(query))]

    def ship(self, directory: Path) -> None:
        """Ships all segments that are complete, and what is written of the others."""
        with self.engine.connect() as connection:
            while ship_all(connection, directory):
                pass


class Server(Process):
    """A server of this pattern, with a log in the directory."""

    def __init__(
        self,
        directory: Path,
        env: dict[str, str],
        app: str = "app.main:app",
        options: Sequence[str] = LOGGED,
        cpus: set[int] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.directory = directory / "log"
        command = [sys.executable, "-m", "uvicorn", f"{PACKAGE}.{app}", "--port", str(self.port)]
        super().__init__(
            [*command, "--no-access-log", "--timeout-graceful-shutdown", "5", *options],
            cwd=ROOT,
            log=directory / f"{uuid4().hex}.txt",
            env={"LOG_DIRECTORY": str(self.directory), **env},
            cpus=cpus,
        )

    def start(self) -> None:
        """Starts the server, and waits until it is ready."""
        super().start()
        wait_until(self.is_ready, f"{self.url} to be ready ({self.log})", 60)

    def is_ready(self) -> bool:
        return answer_of(f"{self.url}/ready") == "200"


class Shipper(Process):
    """A shipper of the log in the directory."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self.alive = directory / f"{uuid4().hex}.alive"
        super().__init__(
            [sys.executable, "-m", f"{PACKAGE}.app.ship"],
            cwd=ROOT,
            log=directory / f"{uuid4().hex}.txt",
            env={"LOG_DIRECTORY": str(directory / "log"), "ALIVE_FILE": str(self.alive), **env},
        )


class Reporter(Server):
    """The service `report`."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        super().__init__(
            directory, env, "app.report:app", ("--http", f"{PACKAGE}.app.guard:BoundedProtocol")
        )


def send(requests: Iterable[Request], count: int) -> Run:
    """Sends requests from several clients at once."""
    load = closed_loop(
        requests, connections=CLIENTS, count=count, deadline_seconds=30, keep_bodies=True
    )
    return asyncio.run(load)


def answered(run: Run, status: int = 200) -> list[Any]:
    """Returns the answers with a status."""
    pairs = zip(run.status_of, run.bodies or [], strict=True)
    return [json.loads(body) for found, body in pairs if found == status]


def ask(url: str, count: int, body: bytes = BODY) -> list[str]:
    """Sends as many predictions until all are answered, and returns the IDs of their records."""
    ids: list[str] = []
    requests = [Request(f"{url}/predict{kind}", body) for kind in ("", "/label")]
    while missing := count - len(ids):
        ids += [answer["job_id"] for answer in answered(send(requests, missing))]
        if len(ids) < count:
            # The server starts again.
            sleep(0.05)
    return ids


def tell(url: str, ids: list[str]) -> None:
    """Sends an event for each prediction until all are accepted."""
    event = {"event": "label", "value": "setosa"}
    while ids:
        bodies = [{"job_id": each, "event_id": f"label of {each}", **event} for each in ids]
        requests = [Request(f"{url}/event", json.dumps(body).encode()) for body in bodies]
        run = send(requests, len(requests))
        ids = [each for each, status in zip(ids, run.status_of, strict=True) if status != 202]


def wait_until_shipped(directory: Path) -> None:
    """Waits until the log is empty: segments are deleted when they are complete and stored."""
    wait_until(lambda: not [*directory.glob("*.jsonl")], "the log to be shipped", 120)
