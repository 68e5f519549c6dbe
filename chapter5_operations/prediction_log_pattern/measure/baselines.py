"""Other ways to write a record, one of which the variable WRITER names for this server."""

import os
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from typing import Any

from sqlalchemy import Connection, text
from starlette.types import ASGIApp, Receive, Scope, Send

from ..app import main
from ..app.database import connect
from ..app.log import Log, line_of

TABLE = "CREATE TABLE IF NOT EXISTS plain (id text, body text)"
INSERT = text("INSERT INTO plain VALUES (:id, :body)")


class Unlogged(Log):
    """Writes nothing."""

    def append(self, kind: str, record_id: str, **fields: Any) -> bool:
        return True


class Swallowing(Log):
    """Does not count what it drops."""

    def drop(self) -> None:
        pass


class Synced(Log):
    """Waits until a line is on the disk."""

    def write(self, line: bytes) -> bool:
        is_written = super().write(line)
        os.fdatasync(self.file)
        return is_written


class Committed(Log):
    """Commits each record before the answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.engine = connect(main.settings)
        self.connection: Connection | None = None

    def append(self, kind: str, record_id: str, **fields: Any) -> bool:
        self.connection = self.connection or self.engine.connect()
        self.insert(self.connection, [(record_id, line_of(kind, record_id, **fields))])
        return True

    def insert(self, connection: Connection, lines: list[tuple[str, bytes]]) -> None:
        connection.execute(INSERT, [{"id": each, "body": line.decode()} for each, line in lines])
        connection.commit()


class Background(Committed):
    """Commits each record in a thread after the answer, as a BackgroundTask does."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.threads = ThreadPoolExecutor(8)

    def append(self, kind: str, record_id: str, **fields: Any) -> bool:
        self.threads.submit(self.commit, record_id, line_of(kind, record_id, **fields))
        return True

    def commit(self, record_id: str, line: bytes) -> None:
        with self.engine.connect() as connection:
            self.insert(connection, [(record_id, line)])


class Queued(Committed):
    """Keeps records in memory, and commits what has come together."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.queue: SimpleQueue[tuple[str, bytes]] = SimpleQueue()
        Thread(target=self.work, daemon=True).start()

    def append(self, kind: str, record_id: str, **fields: Any) -> bool:
        self.queue.put((record_id, line_of(kind, record_id, **fields)))
        return True

    def work(self) -> None:
        with self.engine.connect() as connection:
            while lines := [self.queue.get()]:
                while len(lines) < 1_000 and not self.queue.empty():
                    lines.append(self.queue.get())
                self.insert(connection, lines)


class WithIds:
    """Gives requests what the handlers need, and adds nothing to answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["job_id"], scope["began"] = os.urandom(16).hex(), 0.0
        await self.app(scope, receive, send)


app = main.app
if name := os.environ.get("WRITER"):
    writer = globals()[name]
    main.Log = writer  # type: ignore[attr-defined]
    if writer is Unlogged:
        app.middleware_stack = WithIds(app.build_middleware_stack())
