"""Measures the claim: every row gets one prediction, whatever is killed and however often."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Barrier
from time import sleep
from typing import NamedTuple

from tools.measure.results import Results, quick_argument
from tools.measure.server import interleave, median_and_spread

from ..app.model import Model
from ..app.schema import FEATURES
from ..train.__main__ import write
from .baselines import BOOK_TABLE, as_the_book
from .database import PACKAGE, Database, end, peak_memory_mb, require_done
from .killed import POINTS

HERE = Path(__file__).parents[1]
CLAIM = "Every row gets one prediction, whatever is killed and however often the job is started."
KILLED, BASELINES = f"{PACKAGE}.measure.killed", f"{PACKAGE}.measure.baselines"
ROUNDS, BOOK_ROWS, LOOK_SECONDS = 3, 1_000, 0.2
TOOK = "SELECT extract(epoch FROM finished_at - planned_at)::float FROM jobs"
STORED = "SELECT count(*) FROM predictions"


class Size(NamedTuple):
    """How many rows there are, how many a chunk has, and how many two jobs of the book predict."""

    rows: int
    chunk_rows: int
    book_rows: int

    def database(self, models: Path) -> Database:
        return Database(models, self.rows, CHUNK_ROWS=str(self.chunk_rows))


FULL = Size(100_000, 5_000, 2_000)
QUICK = Size(2_000, 100, 100)


def count_after_kills(models: Path, size: Size) -> dict[str, int]:
    """Counts what is stored after a kill at each point, a run to the end, and another run."""
    with TemporaryDirectory() as name, size.database(models) as database:
        calls = Path(name) / "calls"
        ended = [database.run_job(KILLED, point, str(calls)) for point in POINTS]
        ended += [database.run_job(KILLED, str(calls))]
        stored = database.value(STORED)
        ended += [database.run_job()]
        require_done(ended[-2:])
        distinct = database.value("SELECT count(DISTINCT item_id) FROM predictions")
        return {
            "rows": database.value("SELECT count(*) FROM items"),
            "predictions": stored,
            "duplicates": stored - distinct,
            "added_by_rerun": database.value(STORED) - stored,
            "kills": sum(each.code == -9 for each in ended),
            "rows_predicted_again": sum(map(int, calls.read_text().split())) - size.rows,
            "processes_left": sum(each.processes_left for each in ended),
        }


def count_without(models: Path, size: Size) -> dict[str, int]:
    """Counts the same for jobs that commit at their end, and for two of the book's jobs at once."""
    with TemporaryDirectory() as name, size.database(models) as database:
        # As many kills, each after more chunks than the one before.
        parts, calls = size.rows // size.chunk_rows, Path(name) / "calls"
        points = [parts * n // (len(POINTS) + 1) for n in range(1, len(POINTS) + 1)]
        require_done([database.run_job(BASELINES, *map(str, points), str(calls))])
        database.value(BOOK_TABLE)
        model, meet = Model(models, FEATURES), Barrier(2)
        with ThreadPoolExecutor() as threads:
            work = partial(as_the_book, database.settings, model, size.book_rows, meet)
            for done in [threads.submit(work), threads.submit(work)]:
                done.result()
        return {
            "duplicates": database.value("SELECT count(*) - count(DISTINCT item_id) FROM book"),
            "rows_predicted_again": sum(map(int, calls.read_text().split())),
        }


def run_jobs(database: Database, jobs: int, progress: list[float] | None = None) -> float:
    """Runs jobs at once on an empty table, and returns their rows per second."""
    database.forget()
    started = [database.start_job() for _ in range(jobs)]
    if progress is not None:
        del progress[:]
        while any(job.poll() is None for job in started):
            if database.value("SELECT count(*) FROM jobs"):
                progress.append(database.value(STORED))
                sleep(LOOK_SECONDS)
    require_done([end(job) for job in started])
    return float(database.value(STORED) / database.value(TOOK))


def run_in_memory(database: Database, jobs: int, rows: int) -> float:
    """Returns the rows per second of processes that predict the same rows without a database."""
    started = [database.start_job(BASELINES, str(rows // jobs)) for _ in range(jobs)]
    ended = [end(job) for job in started]
    require_done(ended)
    return sum(float(job.output) for job in ended)


def measure_times(models: Path, light: Path) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Measures rows per second in all ways, how good the forecast is, and the memory of a job."""
    progress: list[float] = []
    with FULL.database(models) as database, FULL.database(light) as lighter:
        database.value(BOOK_TABLE)
        model = Model(models, FEATURES)

        def error_of_forecast() -> float:
            run_jobs(database, 1)
            took = database.value(TOOK)
            return float(abs(database.value("SELECT forecast_seconds FROM jobs") - took) / took)

        measured = interleave(
            {
                "rows_per_second": lambda: run_jobs(database, 2, progress),
                "memory_rows_per_second": lambda: run_in_memory(database, 2, FULL.rows),
                "row_by_row_per_second": lambda: as_the_book(database.settings, model, BOOK_ROWS),
                "database_rows_per_second": lambda: run_jobs(lighter, 2),
                "forecast_error": error_of_forecast,
            },
            ROUNDS,
        )
        figures = {name: median_and_spread(values).median for name, values in measured.items()}
        database.forget()
        figures["job_memory_mb"] = peak_memory_mb(database.start_job())
    with FULL._replace(rows=5 * FULL.rows).database(models) as larger:
        peak_mb = peak_memory_mb(larger.start_job())
        figures["memory_ratio"] = peak_mb / figures["job_memory_mb"]
    ours = figures["rows_per_second"]
    figures["ratio_to_limit"] = ours / figures["memory_rows_per_second"]
    figures["ratio_to_row_by_row"] = ours / figures["row_by_row_per_second"]
    seconds = [n * LOOK_SECONDS for n, _ in zip(count(), progress, strict=False)]
    return figures, {"seconds": seconds, "rows_done": progress}


def claim_holds(counts: dict[str, int], size: Size) -> bool:
    """True if every row has one prediction, and only what was not committed was predicted again."""
    zeros = ("duplicates", "added_by_rerun", "processes_left")
    return (
        counts["rows"] == counts["predictions"] == size.rows
        and not any(counts[name] for name in zeros)
        and counts["kills"] == len(POINTS)
        and counts["rows_predicted_again"] == 2 * size.chunk_rows
    )


def main() -> int:
    arguments = quick_argument(__doc__)
    size = QUICK if arguments.quick else FULL
    models = HERE / "models"
    counts, control = count_after_kills(models, size), count_without(models, size)
    figures: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    if not arguments.quick:
        with TemporaryDirectory() as name:
            light = Path(name)
            write(light, 1)
            figures, series = measure_times(models, light)
    targets: dict[str, tuple[str, float]] = {
        "predictions": ("==", size.rows),
        "duplicates": ("==", 0),
        "added_by_rerun": ("==", 0),
        "processes_left": ("==", 0),
        "rows_predicted_again": ("==", 2 * size.chunk_rows),
        "ratio_to_limit": (">=", 0.6),
        "ratio_to_row_by_row": (">=", 50),
        "forecast_error": ("<=", 0.2),
        "job_memory_mb": ("<=", 150),
        "memory_ratio": ("<=", 1.05),
    }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        figures=figures,
        control=control,
        targets={name: target for name, target in targets.items() if name in counts | figures},
        series=series,
        holds=claim_holds(counts, size)
        and control["duplicates"] == size.book_rows
        and control["rows_predicted_again"] > size.rows,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
