"""Counts what the Python device does: offline, with bad releases, and when it is killed."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ..device.model import Model, ModelError
from ..device.update import (
    FEATURES,
    RefusedError,
    Source,
    install,
    load,
    release_of,
    update,
)
from .baselines import ask_server, install_in_place, take_unchecked
from .processes import Counted, Publisher, Stand
from .shelf import INSTALLED, NEWEST

DEVICES, AWAY = 40, 8
# What changes files, as Python's audit hooks name it.
FILE_OPERATIONS = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
Update = Callable[[Path], object]


class Watch:
    """Counts calls of sockets and operations on files; a hook cannot be removed again."""

    def __init__(self) -> None:
        self.sockets: int | None = None
        self.operations = 0
        self.store = ""
        self.fatal = 0
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.sockets is not None and event.startswith("socket."):
            self.sockets += 1
            raise OSError("there is no network")
        if self.store and is_change(event, arguments) and self.store in str(arguments[0]):
            self.operations += 1
            if self.operations == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)


def is_change(event: str, arguments: tuple[object, ...]) -> bool:
    if event == "open":
        flags = arguments[2]
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))
    return event in FILE_OPERATIONS


watch = Watch()


def now() -> datetime:
    return datetime.now(UTC)


def offline_of(predict: Callable[[], int]) -> tuple[int, int]:
    """Returns how many rows are answered without sockets, and how often one was wanted."""
    watch.sockets = 0
    try:
        answered = predict()
        return answered, watch.sockets
    finally:
        watch.sockets = None


def count_refused(
    store: Path, publisher: Publisher, source: Source, bad: dict[str, tuple[Path, int]]
) -> list[str]:
    """Returns the names of the bad releases that are refused, while the old one still answers."""
    refused = []
    for name, (directory, version) in bad.items():
        publisher.publish(directory, version)
        with suppress(RefusedError):
            update(store, source, now())
            continue
        found = load(store)
        if found and found.release.version == INSTALLED:
            refused.append(name)
    return refused


def in_a_child(store: Path, change: Update, fatal: int) -> int:
    """Changes a store in a process that is killed before an operation; returns their number."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        watch.store, watch.operations, watch.fatal = str(store), 0, fatal
        try:
            change(store)
        finally:
            os.write(writing, str(watch.operations).encode())
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return int(pipe.read() or 0)


def kill_everywhere(
    base: Path, change: Update, is_valid: Callable[[Path], bool]
) -> tuple[int, int]:
    """Kills a change of a store before each of its operations; returns valid stores, and all."""
    work = base.with_name(f"{base.name}-killed")
    shutil.copytree(base, work)
    operations = in_a_child(work, change, 0)
    valid = 0
    for fatal in range(1, operations + 1):
        shutil.rmtree(work)
        shutil.copytree(base, work)
        in_a_child(work, change, fatal)
        valid += is_valid(work)
    shutil.rmtree(work)
    return valid, operations


def is_whole(store: Path, rows: np.ndarray, answers: dict[int, np.ndarray]) -> bool:
    """Tells whether a store has a release that answers as it should, without falling back."""
    found = load(store)
    if found is None:
        return False
    expected = answers[found.release.version]
    return bool(np.abs(found.model.run(rows.tolist()) - expected).max() <= 1e-6)


def is_whole_in_place(store: Path) -> bool:
    """Tells whether what was written in place belongs together, and gives its golden rows."""
    try:
        release = release_of((store / "release.json").read_bytes())
        found = Model(store, FEATURES).run(release.golden["rows"])
    except (ModelError, OSError, RefusedError):
        return False
    return bool(np.abs(found - np.asarray(release.golden["probabilities"])).max() <= 1e-5)


def count_versions(stand: Stand, publisher: Publisher) -> dict[str, int]:
    """Moves a fleet of which some devices are away, and asks the publisher what it has become."""
    fleet = [(new_store(stand, f"device-{number}"), stand.source()) for number in range(DEVICES)]
    present, away = fleet[AWAY:], fleet[:AWAY]
    ask_all(fleet)
    publisher.publish(stand.shelf.directory, INSTALLED)
    ask_all(present)
    then = publisher.versions()
    ask_all(away)
    return {
        "new_versions": then["2"],
        "old_versions": then["1"],
        "new_versions_when_all_are_back": publisher.versions()["2"],
    }


def ask_all(devices: Sequence[tuple[Path, Source]]) -> None:
    """Lets each ask twice, so that the publisher hears of its new version."""
    for store, source in [*devices, *devices]:
        update(store, source, now())


def new_store(stand: Stand, name: str) -> Path:
    store = stand.directory / name
    store.mkdir()
    return store


def count_kills(stand: Stand, store: Path) -> tuple[int, int, int]:
    """Returns how many of how many kills leave a release that is whole, and the same in place."""
    shelf, (rows, answers) = stand.shelf, (stand.rows, stand.answers)
    files = {version: shelf.files(version) for version in (1, NEWEST)}
    new = files[NEWEST]
    valid, operations = kill_everywhere(
        store, lambda work: install(work, *new), lambda work: is_whole(work, rows, answers)
    )
    in_place = new_store(stand, "in-place")
    install_in_place(in_place, *files[1])
    valid_in_place, _ = kill_everywhere(
        in_place, lambda work: install_in_place(work, *new), is_whole_in_place
    )
    return valid, operations, valid_in_place


def count_in_python(stand: Stand, publisher: Publisher) -> Counted:
    """Counts everything that the Python device does."""
    counts = count_versions(stand, publisher)
    store, source, rows = new_store(stand, "store"), stand.source(), stand.rows.tolist()
    installed = update(store, source, now())
    if installed is None:
        raise SystemExit("error: the device has no model")
    offline, sockets = offline_of(lambda: sum(len(installed.model.run([row])) for row in rows))
    address = source.url.partition("//")[2]
    asked_offline, _ = offline_of(lambda: ask_server(address, rows))
    before = publisher.sent()["requests"]
    ask_server(address, rows)
    asked = publisher.sent()["requests"] - before
    refused = count_refused(store, publisher, source, stand.bad)
    taken, careless = 0, new_store(stand, "careless")
    for directory, version in stand.bad.values():
        publisher.publish(directory, version)
        taken += take_unchecked(careless, source)
    valid, operations, valid_in_place = count_kills(stand, store)
    counts |= {
        "rows_offline": offline,
        "sent_while_predicting": sockets,
        "bad_updates_refused": len(refused),
        "valid_after_kill": valid,
    }
    wanted = {
        "new_versions": DEVICES - AWAY,
        "old_versions": AWAY,
        "new_versions_when_all_are_back": DEVICES,
        "rows_offline": len(rows),
        "sent_while_predicting": 0,
        "bad_updates_refused": len(stand.bad),
        "valid_after_kill": operations,
    }
    control = {
        "rows_offline": asked_offline,
        "sent_while_predicting": asked,
        "bad_updates_refused": len(stand.bad) - taken,
        "valid_after_kill": valid_in_place,
    }
    return Counted(counts, {name: ("==", bound) for name, bound in wanted.items()}, control)
