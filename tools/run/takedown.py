"""Takes a pattern down, and reports the service whose death caused it."""

import json
import shutil
import sys
from typing import Any

from tools.read.compose import Compose
from tools.run.processes import all_of, kill_all, recorded, wait_until_gone
from tools.run.rewrite import state_dir
from tools.run.state import LocalError, death_file, last_log, socket_path

KILL_ROUNDS = 10


def take_down(compose: Compose) -> bool:
    """Stops everything, in order if the supervisor runs; returns whether anything was running."""
    state = state_dir(compose.pattern_dir)
    daemon = recorded(state / "supervisord.pid")
    if daemon:
        # Like `supervisorctl shutdown`, but it also works while the supervisor is starting.
        daemon.terminate()
        grace = sum(item.stop_grace_seconds + 2 for item in compose.services.values())
        wait_until_gone([daemon], grace + 10)
    was_up = daemon is not None
    # A process may start another one during the search.
    for _ in range(KILL_ROUNDS):
        if not (leftovers := all_of(state)):
            break
        was_up = True
        kill_all(leftovers)
    else:
        pids = ", ".join(str(process.pid) for process in leftovers)
        raise LocalError(f"processes of {compose.name} cannot be killed: {pids}")
    for name in ("supervisord.pid", "death.json"):
        (state / name).unlink(missing_ok=True)
    shutil.rmtree(state / "pids", ignore_errors=True)
    shutil.rmtree(socket_path(compose).parent, ignore_errors=True)
    return was_up


def show_death(compose: Compose) -> None:
    """Prints, once, what took the pattern down since the last command."""
    if message := death_message(compose):
        take_down(compose)
        print(message, file=sys.stderr)


def raise_if_died(compose: Compose) -> None:
    if message := death_message(compose):
        take_down(compose)
        raise LocalError(message)


def death_message(compose: Compose) -> str:
    try:
        death: dict[str, Any] = json.loads(death_file(compose).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return ""
    how = f"ended with status {death['status']}"
    if death["status"] < 0:
        how = "was killed"
    return (
        f'service "{death["service"]}" {how}, so the others were stopped; last log lines:\n'
        f"{last_log(compose, death['process'])}"
    )
