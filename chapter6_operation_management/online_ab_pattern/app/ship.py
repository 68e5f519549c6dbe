# Copied from chapter5_operations/prediction_log_pattern/app/ship.py
"""The shipper copies each line of the log to PostgreSQL once."""

import fcntl
import logging
import math
import os
import signal
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Annotated, BinaryIO

import psycopg2
from pydantic import AwareDatetime, BaseModel, Field, ValidationError
from sqlalchemy import Connection, exc, select, update
from sqlalchemy.dialects.postgresql import insert

from .database import connect
from .deadline import within
from .log import ID, bytes_in
from .settings import Settings
from .tables import keep_days, shipped, today

log = logging.getLogger("shipper")

BATCH_BYTES = 1_048_576
PAUSE_SECONDS = 0.1
RETRY_SECONDS = 0.5
# After SIGTERM.
DRAIN_SECONDS = 20.0
KEEP_SECONDS = 3_600.0
NULL = r"\N"
COPY = "COPY records (day, segment, position, kind, id, at, body) FROM STDIN"
# COPY raises the errors of psycopg2 itself.
GONE = (
    *(exc.OperationalError, exc.InterfaceError),
    *(psycopg2.OperationalError, psycopg2.InterfaceError),
)


class Head(BaseModel):
    """What is a column of its own."""

    kind: Annotated[str, Field(pattern="^[a-z_]{1,30}$")]
    id: Annotated[str, Field(pattern=ID)] | None
    at: AwareDatetime


def ship(connection: Connection, segment: Path, name: str) -> int:
    """Copies up to a batch of lines and moves the position, in one transaction.

    The name distinguishes the segment from all others. Returns how many lines these were. A segment
    that is stored and complete is deleted.
    """
    own = shipped.c.segment == name
    with segment.open("rb") as file:
        # Before it is read: if nobody writes it now, nothing comes after what is read.
        is_complete = has_no_writer(file)
        size = os.fstat(file.fileno()).st_size
        with connection.begin():
            known = connection.scalar(select(shipped.c.position).where(own))
            if known == size and not is_complete:
                return 0
            if known is None:
                new = insert(shipped).values(segment=name)
                connection.execute(new.on_conflict_do_nothing())
            # Another shipper of this segment waits here, and then finds the new position.
            locked = select(shipped.c.position, today).where(own).with_for_update()
            position, day = connection.execute(locked).one()
            file.seek(position)
            content = file.read(BATCH_BYTES)
            is_end = len(content) < BATCH_BYTES
            whole = content[: content.rfind(b"\n") + 1]
            if (is_end and is_complete) or not (is_end or whole):
                # What a killed process has left, or a line that is longer than a batch.
                whole = content
            lines = whole.removesuffix(b"\n").split(b"\n") if whole else []
            rows, end = [], position
            for line in lines:
                if columns := columns_of(line):
                    key = f"{day}\t{name}\t{end}\t".encode()
                    rows.append(key + columns)
                end += len(line) + 1
            torn = len(lines) - store(connection, rows)
            moved = {"position": position + len(whole), "size": size}
            connection.execute(
                update(shipped).where(own).values(**moved, torn=shipped.c.torn + torn)
            )
    if torn:
        log.warning("%s: %d lines before byte %d are no records", name, torn, end)
    if is_complete and is_end:
        segment.unlink(missing_ok=True)
    return len(lines)


def has_no_writer(file: BinaryIO) -> bool:
    """Tells whether the process that has written a segment has closed it or died."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def columns_of(line: bytes) -> bytes | None:
    """Returns the last columns of a row in the text format of COPY; None for no record."""
    try:
        head = Head.model_validate_json(line)
    except ValidationError:
        return None
    columns = f"{head.kind}\t{head.id or NULL}\t{head.at.isoformat()}\t"
    return columns.encode() + line.replace(b"\\", b"\\\\") + b"\n"


def store(connection: Connection, rows: list[bytes]) -> int:
    """Copies rows, except those that PostgreSQL refuses, and returns how many it has copied."""
    if not rows:
        return 0
    try:
        with connection.begin_nested():
            connection.connection.cursor().copy_expert(COPY, BytesIO(b"".join(rows)))
        return len(rows)
    except psycopg2.DataError:
        half = len(rows) // 2
        return store(connection, rows[:half]) + store(connection, rows[half:]) if half else 0


def ship_all(connection: Connection, directory: Path) -> int:
    """Copies up to a batch of each segment, and returns how many lines these were.

    Several processes may each have a folder of their own below the directory.
    """
    lines = 0
    for segment in sorted(directory.rglob("*.jsonl")):
        name = segment.relative_to(directory).as_posix()
        # Another shipper may have deleted it.
        with suppress(FileNotFoundError):
            lines += ship(connection, segment, name)
    return lines


def run(settings: Settings, stopping: Event) -> None:
    """Ships until `stopping` is set, and then what is left, within a bound."""
    engine, seconds = connect(settings), settings.database_deadline_seconds
    deadline = math.inf

    def goes_on() -> bool:
        nonlocal deadline
        if settings.alive_file:
            settings.alive_file.touch()
        if stopping.is_set():
            deadline = min(deadline, time.monotonic() + DRAIN_SECONDS)
        return time.monotonic() < deadline

    while goes_on():
        try:
            with engine.connect() as connection:
                with within(seconds, connection):
                    keep_days(connection, settings.retention_days)
                next_keep = time.monotonic() + KEEP_SECONDS
                while goes_on() and time.monotonic() < next_keep:
                    with within(seconds, connection):
                        lines = ship_all(connection, settings.log_directory)
                    if not lines and stopping.is_set():
                        return
                    if not lines:
                        stopping.wait(PAUSE_SECONDS)
        except GONE as error:
            reason = str(getattr(error, "orig", error)).partition("\n")[0]
            size = bytes_in(settings.log_directory)
            log.warning("PostgreSQL does not answer, the log has %d bytes: %s", size, reason)
            time.sleep(RETRY_SECONDS)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings, stopping = Settings(), Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    log.info("shipping %s", settings.log_directory)
    run(settings, stopping)
    left = bytes_in(settings.log_directory)
    log.info("stopped, the log has %d bytes", left)
    if settings.alive_file:
        # A probe of the next shipper must not find the file of this one.
        settings.alive_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
