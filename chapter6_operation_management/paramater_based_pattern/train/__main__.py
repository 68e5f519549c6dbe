"""Trains a model for each iris, and writes them to models/."""

import json
from pathlib import Path

from rich.console import Console

from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .iris import LABELS, SAMPLE, SEED
from .model import train


def write(output: Path, seed: int = SEED) -> list[str]:
    """Writes the three models and what the proxy says of them, and returns a summary of each."""
    written = {name: write_artifact(output / name, *train(name, seed)) for name in LABELS}
    fields = ("name", "version", "sha256", "metrics")
    described = {
        "sample": SAMPLE,
        "models": {
            name: {field: each[field] for field in fields} for name, each in written.items()
        },
    }
    write_whole(output / "metadata.json", json.dumps(described, indent=2).encode())
    return [summary(each, output / name) for name, each in written.items()]


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    with writing_to(output):
        written = write(output)
    Console(soft_wrap=True, highlight=False).print("\n".join(written))


if __name__ == "__main__":
    main()
