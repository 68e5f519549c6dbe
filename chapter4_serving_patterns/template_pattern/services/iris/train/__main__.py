"""Trains the model and writes it to models/, where the server loads it from."""

from pathlib import Path

from rich.console import Console

from .artifact import command_line, summary, write_artifact, writing_to
from .model import train


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    model, metadata = train()
    with writing_to(output):
        written = write_artifact(output, model, metadata)
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


if __name__ == "__main__":
    main()
