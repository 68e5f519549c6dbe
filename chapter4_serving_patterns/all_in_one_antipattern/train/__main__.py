"""Trains three models and writes each to a directory of its own under models/."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from . import digits, iris_model, wine_model
from .artifact import command_line, summary, write_artifact, write_whole, writing_to

TRAINERS: dict[str, Callable[[], tuple[bytes, dict[str, Any]]]] = {
    "iris": iris_model.train,
    "wine": wine_model.train,
    "digits": digits.train,
}
# Beyond black and white the digits model has no answer, and a row takes it milliseconds.
LIMITS = {"digits": {"minimum": 0, "maximum": 16, "max_rows": 32}}


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    console = Console(soft_wrap=True, highlight=False)
    digests = {}
    for name, train in TRAINERS.items():
        model, metadata = train()
        metadata["input"] |= LIMITS.get(name, {})
        with writing_to(output):
            written = write_artifact(output / name, model, metadata)
        digests[name] = written["sha256"]
        console.print(summary(written, output / name))
    # It comes last, so that where it is, all models are.
    with writing_to(output):
        write_whole(output / "metadata.json", json.dumps(digests, indent=2).encode())


if __name__ == "__main__":
    main()
