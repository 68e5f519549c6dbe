"""The baselines: a job that commits at its end, the book's job, and no database at all."""

import os
import signal
import sys
import time
from threading import Barrier
from typing import Any

import numpy as np
from sqlalchemy import text

from ..app.chunks import version_of
from ..app.model import Model
from ..app.rows import read, write
from ..app.schema import FEATURES
from ..app.settings import Settings
from ..app.tables import connect
from .killed import CountingModel

BOOK_TABLE = "CREATE TABLE IF NOT EXISTS book (item_id bigint, label text)"
HIGHEST_ID = 2**62


def commit_at_end(settings: Settings, model: Model, chunks_before_kill: int) -> None:
    """Predicts all items and stores them in one transaction, unless it is killed before."""
    version, step = version_of(model.metadata), settings.chunk_rows
    with connect(settings).begin() as connection:
        cursor = connection.connection.cursor()
        ids, rows = read(cursor, version, 0, HIGHEST_ID)
        predicted = []
        for number, first in enumerate(range(0, len(ids), step)):
            if number == chunks_before_kill:
                os.kill(os.getpid(), signal.SIGKILL)
            predicted.append(model.predict(rows[first : first + step]))
        write(cursor, version, 0, ids, np.concatenate(predicted))


def as_the_book(settings: Settings, model: Model, count: int, meet: Barrier | None = None) -> float:
    """Predicts, stores and commits one row after the other; returns the rows per second.

    Jobs that `meet` have both read which items have no prediction before one of them writes.
    """
    missing = "SELECT item_id FROM items EXCEPT SELECT item_id FROM book ORDER BY 1 LIMIT :count"
    of_item = text('SELECT "values" FROM items WHERE item_id = :item_id')
    with connect(settings).connect() as connection:
        ids = connection.scalars(text(missing), {"count": count}).all()
        connection.commit()
        if meet:
            connection.execute(text("SET synchronous_commit = off"))
            meet.wait()
        began = time.perf_counter()
        for item_id in ids:
            values = connection.scalars(of_item, {"item_id": item_id}).one()
            (label,) = model.predict_labels([values])
            stored = {"item_id": item_id, "label": label}
            connection.execute(text("INSERT INTO book VALUES (:item_id, :label)"), stored)
            connection.commit()
        return len(ids) / (time.perf_counter() - began)


def in_memory(settings: Settings, model: Model, count: int) -> float:
    """Predicts rows that are in memory; returns the rows per second."""
    known = np.load(settings.model_directory / "rows.npy")
    rows: Any = known[np.arange(settings.chunk_rows) % len(known)]
    began = time.perf_counter()
    for _ in range(count // settings.chunk_rows):
        model.predict(rows)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Predicts COUNT rows in memory; with CHUNKS... FILE, kills a job after so many chunks each."""
    settings = Settings()
    *points, last = sys.argv[1:]
    if not points:
        model = Model(settings.model_directory, FEATURES)
        sys.stdout.write(f"{in_memory(settings, model, int(last))}")
    for chunks in map(int, points):
        # A fork, because starting Python takes longer than the job.
        if os.fork() == 0:
            commit_at_end(settings, CountingModel(settings.model_directory, FEATURES), chunks)
        os.wait()


if __name__ == "__main__":
    main()
