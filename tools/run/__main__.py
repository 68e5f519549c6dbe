"""Runs the `docker-compose.yml` of a pattern without Docker.

Each service becomes a local process, supervised by one supervisord per pattern. All state is in
`PATTERN_DIR/.local`: logs, volumes, and the commands under `services`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from tools.read.compose import ComposeError
from tools.run.binaries import MissingServerError
from tools.run.interrupts import interrupt_once
from tools.run.jobs import run
from tools.run.logs import logs
from tools.run.ports import PortError
from tools.run.ps import ps
from tools.run.rewrite import state_dir
from tools.run.state import LocalError, refuse_files_of_others
from tools.run.verbs import down, kill, pause, restart, start, stop, unpause, up

VERBS: dict[str, tuple[Callable[..., int | None], str]] = {
    "up": (up, "start every service and wait until all are ready"),
    "down": (down, "stop every service"),
    "ps": (ps, "list the processes: what runs, since when, and on which port"),
    "stop": (stop, "stop one service; the others keep running"),
    "start": (start, "start one service again and wait until it is ready"),
    "restart": (restart, "stop one service, start it again and wait until it is ready"),
    "kill": (kill, "send SIGKILL to one service; it stays down until you start it"),
    "run": (run, "run a job, a service with `profiles`, in the foreground until it ends"),
    "pause": (pause, "suspend one service, so that it hangs without being dead"),
    "unpause": (unpause, "let a paused service go on"),
    "logs": (logs, "print the logs of the services"),
}


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.run",
        description="Run a pattern's docker-compose.yml without Docker.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (_, text) in VERBS.items():
        command = verbs.add_parser(verb, help=text, description=text.capitalize() + ".")
        command.add_argument("pattern_dir", type=Path, help="the directory of the pattern")
        if verb in ("stop", "start", "restart", "kill", "run", "pause", "unpause"):
            command.add_argument("service", help="a service of docker-compose.yml")
        if verb == "logs":
            command.add_argument("service", nargs="?", help="only this service")
            command.add_argument("--follow", action="store_true", help="keep printing new lines")
            command.add_argument("--tail", type=int, metavar="N", help="only the last N lines")
        if verb == "down":
            command.add_argument("--volumes", action="store_true", help="remove the volumes too")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    arguments = vars(arguments_of(words))
    verb = arguments.pop("verb")
    execute, _ = VERBS[verb]
    try:
        refuse_files_of_others(state_dir(arguments["pattern_dir"]))
        return execute(**arguments) or 0
    except (ComposeError, LocalError, MissingServerError, PortError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        state = state_dir(arguments["pattern_dir"])
        print(
            f"error: {error.filename or state}: {error.strerror}; "
            f"make {state} writable and free space on its disk",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        if verb == "up":
            print("interrupted: nothing is left running", file=sys.stderr)
        return 130


if __name__ == "__main__":
    interrupt_once()
    sys.exit(main())
