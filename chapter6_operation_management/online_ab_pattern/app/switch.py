"""The switch takes the new version out of the mesh once it fails or harms, until told otherwise."""

import logging
import signal
from collections import deque
from threading import Event

import numpy as np
from sqlalchemy import Connection, exc

from .database import connect
from .deadline import within
from .decide import always_valid
from .experiment import Experiment
from .mesh import MeshError, answered, weigh
from .outcomes import RECENT_SECONDS, Counts, Pair, count
from .runs import Run, begin, stop
from .settings import Settings
from .written import WrittenError, read

log = logging.getLogger("switch")

LOOK_SECONDS = 0.5


def harm(experiment: Experiment, counts: Counts, seen: tuple[Pair, Pair]) -> str | None:
    """Returns why users have to be spared the new version; None if nothing says so."""
    a, b = experiment.arms.a, experiment.arms.b
    size, alpha = sum(experiment.planned), experiment.alpha
    sources = {
        "as the log says": (counts.failures, counts.requests),
        "as the log says of the last 30 s": (counts.recent_failures, counts.recent_requests),
        "as the mesh says of the last 30 s": seen,
    }
    for source, (failures, requests) in sources.items():
        if always_valid(failures, requests, size, alpha).low > experiment.harm_error_share:
            return (
                f"{failures[1]} of {requests[1]} requests to {b} have failed, and {failures[0]} of "
                f"{requests[0]} to {a}, {source}"
            )
    successes, users = counts.watched_successes, counts.watched
    if always_valid(successes, users, size, alpha).high < 0:
        return (
            f"{successes[1]} of {users[1]} users of {b} are successes, and {successes[0]} of "
            f"{users[0]} of {a}"
        )
    return None


class Switch:
    """What it remembers from one look to the next."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.experiment, self.digest = read(settings.experiment_file, Experiment)
        self.run: Run | None = None
        # What the mesh has counted at each of the last looks, since the run began.
        self.counted: deque[tuple[Pair, Pair]] = deque(maxlen=round(RECENT_SECONDS / LOOK_SECONDS))
        self.is_off: bool | None = None
        self.complaint = ""

    def look(self, connection: Connection) -> None:
        """Begins a run if the experiment is a new one, and stops the run if it does harm."""
        try:
            self.experiment, self.digest = read(self.settings.experiment_file, Experiment)
        except WrittenError as error:
            self.complain(f"the last experiment goes on: {error}")
        run = begin(connection, self.digest)
        if self.run is None or run.number != self.run.number:
            log.info("run %d of %s since %s", run.number, self.experiment.name, run.began)
            self.counted.clear()
        if run.stopped is None:
            counts = count(connection, run, self.experiment, self.settings.settle_seconds)
            if reason := harm(self.experiment, counts, self.seen_by_mesh()):
                arm, act = self.experiment.arms.b, self.settings.act
                done = "is" if act else "has to be set to"
                log.warning("the weight of %s %s 0: %s", arm, done, reason)
                run = stop(connection, run, f"the weight of {arm} {done} 0: {reason}")
        self.run = run

    def seen_by_mesh(self) -> tuple[Pair, Pair]:
        """Returns the failures and the answers of the last time, as far as they are known."""
        if not self.settings.act:
            return (0, 0), (0, 0)
        try:
            seen = answered(self.settings.admin_url, self.experiment)
        except MeshError as error:
            self.complain(str(error))
            return (0, 0), (0, 0)
        # After a restart, Envoy counts from 0 again.
        if self.counted and np.any(np.less(seen, self.counted[-1])):
            self.counted.clear()
        self.counted.append(seen)
        (a, b), (of_a, of_b) = np.subtract(seen, self.counted[0]).tolist()
        return (a, b), (of_a, of_b)

    def act(self) -> None:
        """Repeats a weight of 0, because Envoy forgets it, and takes it back once."""
        if not self.settings.act or self.run is None:
            return
        must_be_off = self.run.stopped is not None
        if must_be_off or self.is_off is not False:
            try:
                weigh(self.settings.admin_url, self.experiment.arms.b, 0 if must_be_off else None)
                self.is_off = must_be_off
            except MeshError as error:
                self.complain(str(error))

    def complain(self, complaint: str) -> None:
        if complaint != self.complaint:
            log.warning(complaint)
        self.complaint = complaint


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings, stopping = Settings(), Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        switch = Switch(settings)
    except WrittenError as error:
        raise SystemExit(f"error: {error}") from None
    engine, seconds = connect(settings), settings.database_deadline_seconds
    while not stopping.is_set():
        try:
            with engine.connect() as connection, within(seconds, connection), connection.begin():
                switch.look(connection)
                # Before the commit, so that the report says nothing that the mesh does not do yet.
                switch.act()
            if settings.alive_file:
                settings.alive_file.touch()
        except exc.DBAPIError as error:
            # It may also be there without the tables of the shipper.
            switch.complain(f"PostgreSQL does not answer: {str(error.orig).partition(chr(10))[0]}")
        stopping.wait(LOOK_SECONDS)
    if settings.alive_file:
        # A probe of the next switch must not find the file of this one.
        settings.alive_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
