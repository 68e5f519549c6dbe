"""Counts what is stored of what was answered, while processes are killed and the log is full."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from random import Random
from time import sleep
from typing import NamedTuple

from sqlalchemy import text

from tools.measure.load import Request
from tools.measure.servers import Process

from ..app.log import Log
from ..app.model import Model
from ..app.schema import FEATURES
from .baselines import TABLE, Swallowing
from .processes import (
    Database,
    Reader,
    Server,
    Shipper,
    answered,
    ask,
    send,
    tell,
    wait_until_shipped,
)

FULL_LOG_BYTES = 100_000
LINES = 100


class Size(NamedTuple):
    """How many predictions are answered while processes are killed, and so on."""

    answered: int
    kills_of_each: int
    replayed: int
    without_database: int


FULL = Size(answered=20_000, kills_of_each=3, replayed=1_000, without_database=2_000)
QUICK = Size(answered=600, kills_of_each=1, replayed=50, without_database=400)


class Processes:
    """Everything that is started, at once because Python takes its time."""

    def __init__(self, database: Database, models: Path, parent: Path, stack: ExitStack) -> None:
        shared = {
            "MODEL_DIRECTORY": str(models),
            "OUTLIER_MODEL_DIRECTORY": str(models / "outlier"),
        }
        env = database.variables | shared
        small = env | {"LOG_MAX_BYTES": str(FULL_LOG_BYTES)}
        baseline = "measure.baselines:app"

        def start(name: str, env: dict[str, str], app: str = "app.main:app") -> Future[Server]:
            return threads.submit(lambda: stack.enter_context(Server(parent / name, env, app)))

        with ThreadPoolExecutor() as threads:
            api = start("killed", env)
            small_api = start("small", small)
            background = start("background", env | {"WRITER": "Background"}, baseline)
            reader = threads.submit(lambda: stack.enter_context(Reader(parent / "reader", env)))
        self.api, self.small = api.result(), small_api.result()
        self.background, self.reader = background.result(), reader.result()
        self.shipper = stack.enter_context(Shipper(parent / "killed", env))
        self.database = database


def count(
    size: Size, database: Database, models: Path, other: Path, parent: Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Returns the counts, and the same counts of the controls."""
    with ExitStack() as stack:
        processes = Processes(database, models, parent, stack)
        counts, ids = count_after_kills(size, processes)
        counts["replayed"] = len(ids[: size.replayed])
        counts["replayed_unequal"] = count_unequal(processes.reader, ids[: size.replayed])
        unaccounted, missing, unjoined = count_without_database(size.without_database, processes)
        control = {
            "missing": missing,
            "twice": count_twice_with_a_file(database, parent / "file"),
            "events_unjoined": unjoined,
            "replayed_unequal": count_unequal_of(Model(other, FEATURES), database, size.replayed),
            "unaccounted_when_full": count_swallowed(
                size.without_database, database, parent / "swallowed"
            ),
        }
    return counts | {"unaccounted_when_full": unaccounted}, control


def count_after_kills(size: Size, processes: Processes) -> tuple[dict[str, int], list[str]]:
    """Kills each process several times while eight clients predict, and looks what is stored."""
    api, database = processes.api, processes.database
    chance = Random(0)  # noqa: S311
    victims: list[Process] = [api, processes.shipper, database] * size.kills_of_each
    chance.shuffle(victims)
    ids: list[str] = []
    events: list[str] = []
    with ThreadPoolExecutor() as threads:
        for victim in victims:
            killed = threads.submit(kill, victim, chance.uniform(0.02, 0.2))
            part = ask(api.url, -(-size.answered // len(victims)))
            while not killed.done():
                part += ask(api.url, 50)
            killed.result()
            tell(api.url, part[::10])
            ids += part
            events += part[::10]
    api.stop()
    wait_until_shipped(api.directory)
    processes.shipper.stop()
    stored = Counter(
        row.id for row in database.rows("SELECT id FROM records WHERE kind = 'prediction'")
    )
    return {
        "answered": len(ids),
        "kills": len(victims),
        "missing": len(set(ids) - set(stored)),
        "twice": sum(stored.values()) - len(stored),
        "events": len(events),
        "events_unjoined": count_unjoined(database, events),
        "torn": database.value("SELECT sum(torn)::int FROM shipped"),
    }, ids


def count_unjoined(database: Database, ids: list[str]) -> int:
    joined = {row.id for row in database.rows("SELECT id FROM outcomes WHERE event = 'label'")}
    return len(set(ids) - joined)


def kill(victim: Process, seconds: float) -> None:
    """Kills a process after some time, and starts it again."""
    sleep(seconds)
    victim.kill()
    victim.start()


def count_unequal(reader: Server, ids: list[str]) -> int:
    """Counts the predictions that the model does not repeat to the bit."""
    run = send([Request(f"{reader.url}/log/{each}/replay", b"") for each in ids], len(ids))
    return len(ids) - sum(answer["equal"] is True for answer in answered(run))


def count_unequal_of(model: Model, database: Database, most: int) -> int:
    """Counts them for a model of another training, which the reader would refuse."""
    query = f"SELECT body FROM records WHERE kind = 'prediction' LIMIT {most}"  # noqa: S608
    bodies = [row.body for row in database.rows(query)]
    return sum(model.predict(body["data"]).tolist() != body["prediction"] for body in bodies)


def count_without_database(size: int, processes: Processes) -> tuple[int, int, int]:
    """Predicts without PostgreSQL until the log is full, and again when it is back.

    Returns how many answers nothing accounts for, how many a task after the answer has lost, and
    how many events of those have no prediction.
    """
    database, small = processes.database, processes.small
    database.value(TABLE)
    before = count_accounted(database)
    database.kill()
    sent, lost = len(ask(small.url, size)), ask(processes.background.url, LINES)
    database.start()
    database.ship(small.directory)
    sent += len(ask(small.url, 1))
    tell(small.url, lost)
    small.stop()
    database.ship(small.directory)
    found = {row.id for row in database.rows("SELECT id FROM plain")}
    unaccounted = sent - (count_accounted(database) - before)
    return unaccounted, len(set(lost) - found), count_unjoined(database, lost)


def count_swallowed(size: int, database: Database, directory: Path) -> int:
    """Counts the records that nothing accounts for if what does not fit is not counted."""
    before = count_accounted(database)
    log = Swallowing(directory, FULL_LOG_BYTES, FULL_LOG_BYTES)
    for number in range(size):
        log.append("prediction", f"{number:032x}", data=[[0.0] * FEATURES] * 10)
    log.close()
    database.ship(directory)
    return size - (count_accounted(database) - before)


def count_accounted(database: Database) -> int:
    """Counts the records of predictions, and those that the log says it has dropped."""
    predictions = "SELECT count(*) FROM records WHERE kind = 'prediction'"
    dropped = "SELECT sum((body ->> 'count')::int) FROM records WHERE kind = 'dropped'"
    return int(database.value(predictions) + (database.value(dropped) or 0))


def count_twice_with_a_file(database: Database, directory: Path) -> int:
    """Counts what a shipper stores twice that keeps its position in a file and is killed."""
    log = Log(directory, 10**6, 10**7)
    for number in range(LINES):
        log.append("event", f"{number:032x}")
    log.close()
    (segment,) = directory.glob("*.jsonl")
    database.value("CREATE TABLE copied (line text)")
    run_forked(lambda: ship_with_a_file(database, segment, is_killed=True))
    run_forked(lambda: ship_with_a_file(database, segment, is_killed=False))
    return int(database.value("SELECT count(*) - count(DISTINCT line) FROM copied"))


def ship_with_a_file(database: Database, segment: Path, is_killed: bool) -> None:
    position = segment.with_suffix(".position")
    first = int(position.read_text()) if position.exists() else 0
    content = segment.read_bytes()[first:]
    with database.engine.begin() as connection:
        lines = [{"line": line.decode()} for line in content.splitlines()]
        connection.execute(text("INSERT INTO copied VALUES (:line)"), lines)
    if is_killed:
        os.kill(os.getpid(), signal.SIGKILL)
    position.write_text(str(first + len(content)))


def run_forked(program: Callable[[], None]) -> None:
    """Runs a function in a process of its own, because starting Python takes longer."""
    if os.fork() == 0:
        program()
        os._exit(0)
    os.wait()


def claim_holds(counts: dict[str, int], size: Size) -> bool:
    """True if every answer has one record with its events, and what does not fit is counted."""
    zeros = ("missing", "twice", "events_unjoined", "replayed_unequal", "unaccounted_when_full")
    return (
        counts["answered"] >= size.answered
        and counts["kills"] == 3 * size.kills_of_each
        and counts["replayed"] == size.replayed
        and counts["events"] > 0
        and not any(counts[name] for name in zeros)
    )
