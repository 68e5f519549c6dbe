"""Predicts every item without a prediction, chunk by chunk, and ends."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic

import psycopg2
from psycopg2.errors import UndefinedColumn, UndefinedTable
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Connection, exc, func, select

from . import chunks
from .deadline import within
from .model import Model, ModelError
from .rows import read, write
from .schema import FEATURES
from .settings import Settings
from .tables import connect

log = logging.getLogger("job")

# The exit codes: whether the job is done, and if not, whether it helps to start it again.
DONE, UNFINISHED, HOPELESS = 0, 1, 2
PAUSE_SECONDS = 0.2
# COPY raises the errors of psycopg2 itself.
GONE = (
    *(exc.OperationalError, exc.InterfaceError),
    *(psycopg2.OperationalError, psycopg2.InterfaceError),
)


def run(settings: Settings, model: Model, stopping: Event) -> int:
    """Works on the job of a model until it has ended, and returns the exit code."""
    engine = connect(settings)
    deadline = None
    version = chunks.version_of(model.metadata)
    while True:
        try:
            with engine.connect() as connection, engine.connect() as notes:
                notes.execution_options(isolation_level="AUTOCOMMIT")
                job_id = chunks.plan(connection, version, settings.chunk_rows)
                if job_id is None:
                    log.info("every item has a prediction by %s", version)
                    return DONE
                with connection.begin():
                    # By this name, processes of the same job count each other.
                    name = func.set_config("application_name", f"job {job_id}", False)
                    connection.execute(select(name))
                with progress(f"job {job_id}") as show:
                    while not stopping.is_set():
                        show(*rows_of(connection, job_id))
                        is_predicted = predict_next(settings, model, connection, notes, job_id)
                        deadline = None
                        if not is_predicted:
                            if chunks.end(connection, job_id):
                                break
                            # Others work on the last chunks, and may be killed.
                            stopping.wait(PAUSE_SECONDS)
                return outcome(connection, job_id)
        except exc.ProgrammingError as error:
            if not isinstance(error.orig, UndefinedTable | UndefinedColumn):
                raise
            log.error("the tables cannot be used, run python -m app.seed: %s", error.orig)
            return HOPELESS
        except GONE as error:
            deadline = deadline or monotonic() + settings.database_deadline_seconds
            if stopping.is_set() or monotonic() > deadline:
                reason = str(getattr(error, "orig", error)).partition("\n")[0]
                log.error("PostgreSQL does not answer: %s", reason)
                return UNFINISHED
            stopping.wait(PAUSE_SECONDS)


def predict_next(
    settings: Settings, model: Model, connection: Connection, notes: Connection, job_id: int
) -> bool:
    """Predicts and stores one chunk in one transaction; False if there was none to claim."""
    seconds = settings.database_deadline_seconds
    began = monotonic()
    chunk = None
    try:
        with connection.begin() as transaction:
            cursor = connection.connection.cursor()
            with within(seconds, connection), within(seconds, notes):
                chunk = chunks.claim(connection, notes, job_id, settings.max_attempts)
                if chunk is None:
                    return False
                version = chunks.version_of(model.metadata)
                ids, rows = read(cursor, version, chunk.first_item_id, chunk.last_item_id)
            probabilities = model.predict(rows) if len(ids) else None
            with within(seconds, connection):
                if probabilities is not None:
                    write(cursor, version, job_id, ids, probabilities)
                chunks.finish(connection, chunk)
                transaction.commit()
    except GONE:
        raise
    except Exception as error:
        # ONNX Runtime raises a different class for each fault.
        if chunk is None:
            raise
        reason = f"{type(error).__name__}: {error}"[:500]
        log.warning(
            "job %d, chunk %d, attempt %d: %s", job_id, chunk.chunk_id, chunk.tried + 1, reason
        )
        chunks.give_up(connection, chunk, reason, settings.retry, settings.max_attempts)
        return True
    with within(seconds, connection):
        row_seconds = (monotonic() - began) / chunk.rows
        expected = chunks.forecast(connection, job_id, row_seconds, settings.window_seconds)
    if expected:
        log.info("job %d: expected to take %.0f s", job_id, expected.forecast_seconds)
        if expected.misses_window:
            window = settings.window_seconds
            log.warning("job %d: it will not end within its window of %.0f s", job_id, window)
    return True


def rows_of(connection: Connection, job_id: int) -> tuple[int, int]:
    """Returns how many rows of a job are predicted, and how many it has."""
    with connection.begin():
        (state,) = chunks.states(connection, job_id)
    return state.rows - state.missing, state.rows


def outcome(connection: Connection, job_id: int) -> int:
    with connection.begin():
        (state,) = chunks.states(connection, job_id)
    log.info("job %d: %d rows, %d without a prediction", job_id, state.rows, state.missing)
    if state.failed:
        log.error("job %d: %d chunks have failed: %s", job_id, state.failed, state.reason)
    return UNFINISHED if state.missing else DONE


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how many rows are done: a bar on a terminal, and elsewhere a line for every 10 %."""
    console = Console()
    if console.is_terminal:
        columns = TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        if done * 10 // total > shown:
            shown = done * 10 // total
            log.info("%s: %d of %d rows", name, done, total)

    yield show


def main(load: Callable[[Path, int], Model] = Model) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
        settings = Settings()
        model = load(settings.model_directory, FEATURES)
    except ValidationError as error:
        wrong = error.errors()[0]
        log.error("%s: %s", str(wrong["loc"][0]).upper(), wrong["msg"])
        sys.exit(HOPELESS)
    except ModelError as error:
        log.error("%s", error)
        sys.exit(HOPELESS)
    stopping = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    sys.exit(run(settings, model, stopping))


if __name__ == "__main__":
    main()
