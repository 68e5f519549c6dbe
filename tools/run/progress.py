"""Shows what a command waits for: in a status line on a terminal, otherwise in a line at times."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.text import Text

LINE_EVERY_SECONDS = 10
SPINNER_WIDTH = 4
TAIL_BYTES = 4096


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yields a function to call again and again with what is waited for."""
    console = Console(highlight=False)
    if sys.stdout.isatty() and console.is_interactive:
        with console.status("") as status:
            yield lambda text: status.update(Text(text[: console.width - SPINNER_WIDTH]))
        return
    printed = monotonic()

    def print_at_times(text: str) -> None:
        nonlocal printed
        if monotonic() - printed >= LINE_EVERY_SECONDS:
            printed = monotonic()
            print(text, flush=True)

    yield print_at_times


def last_line(path: Path) -> str:
    """Returns the last line of a log that is not blank, without colours."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        for line in reversed(file.read().decode(errors="replace").splitlines()):
            if plain := Text.from_ansi(line).plain.strip():
                return plain
    return ""
