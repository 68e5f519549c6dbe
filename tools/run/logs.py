"""Shows the logs of a pattern's services."""

from pathlib import Path
from time import sleep

from rich.console import Console
from rich.markup import escape

from tools.read.compose import load
from tools.run.rewrite import state_dir
from tools.run.state import LocalError, is_up, process_names

COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "bright_cyan", "bright_yellow")
POLL_SECONDS = 0.1


def logs(pattern_dir: Path, service: str | None, follow: bool, tail: int | None) -> None:
    """Prints the logs of all services or of one, as far as possible in the order of writing."""
    compose = load(pattern_dir)
    if service:
        compose.service(service)
    names = [name for item in compose.services.values() for name in process_names(item)]
    wanted = set(process_names(compose.services[service])) if service else set(names)
    path = state_dir(compose.pattern_dir) / "log" / "all"
    if not path.exists():
        raise LocalError(f"{compose.name} has no logs: run `make up` first")

    console = Console(highlight=False, soft_wrap=True)
    width = max(map(len, names))
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        lines = [line for line in file if line.partition("\t")[0] in wanted]
        for line in lines[-tail:] if tail else lines if tail is None else []:
            print_log_line(console, line, names, width)
        while follow:
            if line := file.readline():
                if line.partition("\t")[0] in wanted:
                    print_log_line(console, line, names, width)
            elif not is_up(compose):
                return
            else:
                # The file is truncated when it has grown too large.
                file.seek(min(file.tell(), path.stat().st_size))
                sleep(POLL_SECONDS)


def print_log_line(console: Console, line: str, names: list[str], width: int) -> None:
    name, _, text = line.rstrip("\n").partition("\t")
    colour = COLOURS[names.index(name) % len(COLOURS)]
    console.print(f"[{colour}]{name:<{width}} |[/] {escape(text)}")
