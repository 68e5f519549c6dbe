# Copied from chapter5_operations/prediction_log_pattern/app/log.py
"""Appends each record as one JSON line to a file, before the caller gets the answer."""

import fcntl
import os
import re
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from pydantic import TypeAdapter

# How often a full log looks for space, at most.
LOOK_SECONDS = 0.1
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
ID = rf"^(?:[0-9a-f]{{32}}|{UUID})$"
# A tenth of the time that `json` takes.
to_json = TypeAdapter(dict[str, Any]).dump_json
GIVEN_ID = re.compile(UUID.encode())


def id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the ID that the mesh has given to a request if that is a UUID, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and GIVEN_ID.fullmatch(value):
            return value.decode()
    # uuid4 takes nine times as long.
    return os.urandom(16).hex()


def is_sampled(record_id: str, share: float) -> bool:
    """Tells whether a record is in the sample; the same ID gets the same answer everywhere."""
    return share >= 1 or crc32(record_id.encode()) < share * 2**32


def version_of(metadata: dict[str, Any]) -> str:
    """Names a model in records: another file is another model, whatever its version says."""
    return f"{metadata['version']}-{metadata['sha256'][:12]}"


def line_of(kind: str, record_id: str | None, **fields: Any) -> bytes:
    return to_json({"kind": kind, "id": record_id, "at": datetime.now(UTC), **fields}) + b"\n"


class Log:
    """A directory of segments, one of which this process writes.

    It holds a lock on that segment until it closes it or dies, so a segment without a lock is
    complete.
    """

    def __init__(self, directory: Path, segment_bytes: int, max_bytes: int) -> None:
        """Opens a segment; raises an OSError if that is impossible."""
        self.directory = directory
        self.max_bytes = max_bytes
        # With several segments, those that have been shipped make room for new ones.
        self.segment_bytes = min(segment_bytes, max_bytes // 4)
        self.file = -1
        # The size of the segment, and how much more the directory can take.
        self.size = self.left = 0
        self.started_ns = 0
        self.next_look = 0.0
        self.dropped = 0
        directory.mkdir(parents=True, exist_ok=True)
        self.open_segment()

    def append(self, kind: str, record_id: str, **fields: Any) -> bool:
        """Writes a record; one that does not fit is counted, and the count is written later."""
        line = line_of(kind, record_id, **fields)
        count = self.line_of_dropped() if self.dropped else b""
        if self.has_room(len(count) + len(line)) and (not count or self.write(count)):
            self.dropped = 0
            if self.write(line):
                return True
        self.drop()
        return False

    def drop(self) -> None:
        self.until = datetime.now(UTC)
        if not self.dropped:
            self.since = self.until
        self.dropped += 1

    def line_of_dropped(self) -> bytes:
        return line_of("dropped", None, count=self.dropped, since=self.since, until=self.until)

    def write(self, line: bytes) -> bool:
        """Writes a line as a whole or not at all."""
        written = 0
        with suppress(OSError):
            written = os.write(self.file, line)
        if 0 < written < len(line):
            # The disk is full. Part of a line would spoil the next one.
            os.ftruncate(self.file, self.size)
        if written < len(line):
            return False
        self.size += written
        self.left -= written
        return True

    def has_room(self, needed_bytes: int) -> bool:
        """Tells whether lines fit; starts another segment if this one is full."""
        if needed_bytes <= self.left and self.size + needed_bytes <= self.segment_bytes:
            return True
        if time.monotonic() < self.next_look:
            return False
        with suppress(OSError):
            if self.size and self.size + needed_bytes > self.segment_bytes:
                self.open_segment()
            self.left = self.max_bytes - bytes_in(self.directory)
            if needed_bytes <= self.left:
                return True
        self.next_look = time.monotonic() + LOOK_SECONDS
        return False

    def open_segment(self) -> None:
        # The clock may go back.
        self.started_ns = max(time.time_ns(), self.started_ns + 1)
        path = self.directory / f"{socket.gethostname()}-{self.started_ns}.jsonl"
        new = path.with_suffix(".new")
        file = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        # It gets its name once it is locked: others take what has no lock as complete.
        fcntl.flock(file, fcntl.LOCK_EX)
        new.rename(path)
        if self.file >= 0:
            os.close(self.file)
        self.file, self.size = file, 0

    def close(self) -> None:
        """Ends the segment; the number of dropped records is written even if the log is full."""
        if self.dropped:
            self.write(self.line_of_dropped())
        os.close(self.file)
        # Another file may get the number.
        self.file = -1


def bytes_in(directory: Path) -> int:
    """Returns the size of all segments; the shipper may be deleting some."""
    total = 0
    for path in directory.rglob("*.jsonl"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
