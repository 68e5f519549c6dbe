"""Trains both versions: the one that users have now, and the one that may take its place."""

from pathlib import Path

from rich.console import Console

from . import rf, svc
from .artifact import command_line, summary, write_artifact, writing_to


def write(output: Path) -> list[str]:
    """Writes both, and returns what to say of each."""
    # Once models/metadata.json exists, both do.
    trained = {output / "rf": rf.train(), output: svc.train()}
    return [
        summary(write_artifact(directory, *artifact), directory)
        for directory, artifact in trained.items()
    ]


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    with writing_to(output):
        written = write(output)
    Console(soft_wrap=True, highlight=False).print("\n".join(written))


if __name__ == "__main__":
    main()
