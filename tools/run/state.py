"""Reads the state of a pattern under `.local` and tells whether it is up."""

import fcntl
import json
import os
import pwd
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tools.read.compose import Compose, Service
from tools.run.processes import is_suspended, supervisor_of
from tools.run.rewrite import state_dir, temporary_dir

# A Unix socket path has at most 104 characters, and supervisord appends its process id.
SOCKET_PATH_MAX = 90
LAST_LOG_LINES = 20
# In the name of a run of a job, after the service. The name of a service has no dot.
RUN = ".run-"


class LocalError(Exception):
    """A pattern cannot be started, or has stopped running."""


def process_names(service: Service) -> list[str]:
    if service.replicas == 1:
        return [service.name]
    return [f"{service.name}-{number}" for number in range(1, service.replicas + 1)]


def run_name(service: str) -> str:
    """Names a run of a job by the process that waits for it."""
    return f"{service}{RUN}{os.getpid()}"


def is_run_of(service: str, name: str) -> bool:
    return name.startswith(f"{service}{RUN}")


def socket_path(compose: Compose) -> Path:
    path = temporary_dir(compose.pattern_dir, "socket") / "supervisor"
    if len(str(path)) > SOCKET_PATH_MAX:
        raise LocalError(f"the path {path} is too long for a socket: set TMPDIR to a shorter one")
    return path


def death_file(compose: Compose) -> Path:
    return state_dir(compose.pattern_dir) / "death.json"


def is_up(compose: Compose) -> bool:
    supervisor = supervisor_of(state_dir(compose.pattern_dir))
    if supervisor and is_suspended(supervisor):
        return False
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(socket_path(compose)))
    except OSError:
        return False
    return not death_file(compose).exists()


def refuse_files_of_others(state: Path) -> None:
    """Raises a LocalError if another user has run the pattern, for example root through sudo."""
    for path in (state, *state.glob("*")):
        owner = path.lstat().st_uid if path.exists() else os.getuid()
        if owner != os.getuid():
            try:
                name = pwd.getpwuid(owner).pw_name
            except KeyError:
                name = f"the user with id {owner}"
            folder = shlex.quote(str(state))
            raise LocalError(
                f"{path} belongs to {name}: take it over with `sudo chown -R $(id -u) {folder}`, "
                f"or delete it with `sudo rm -r {folder}`"
            )


@contextmanager
def only_one(compose: Compose, lock: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Locks the pattern against other commands that start or stop it.

    With `fcntl.LOCK_SH`, several commands can hold the lock, but none that asks for it alone.
    """
    folder = state_dir(compose.pattern_dir)
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, lock | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(
                f"another command is starting or stopping {compose.name}: wait until it ends"
            ) from None
        yield


def read_plan(compose: Compose) -> dict[str, Any]:
    """Returns what runs as `plan_of` describes it; empty if nothing was started."""
    with suppress(FileNotFoundError):
        path = state_dir(compose.pattern_dir) / "plan.json"
        plan: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return plan
    return {}


def as_started(compose: Compose) -> Compose:
    """Returns a pattern with the profiles of its `up`, which the shell need not name again."""
    return replace(compose, profiles=frozenset(read_plan(compose).get("profiles", ())))


def last_log(compose: Compose, process: str) -> str:
    return last_lines(state_dir(compose.pattern_dir) / "log" / f"{process}.log")


def last_lines(path: Path) -> str:
    with suppress(FileNotFoundError):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LAST_LOG_LINES:]) or "  (none)"
    return "  (none)"
