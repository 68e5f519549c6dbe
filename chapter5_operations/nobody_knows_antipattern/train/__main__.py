"""Trains the model and the one before it, and writes both to models/ with the card."""

from pathlib import Path

from rich.console import Console

from .artifact import command_line, summary, write_artifact, writing_to
from .card import card
from .iris import load
from .model import train

# The release before this one had a wider margin.
PREVIOUS_PENALTY = 0.1


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    previous, described = train(version="0", penalty=PREVIOUS_PENALTY)
    model, metadata = train()
    with writing_to(output):
        rollback = write_artifact(output / "rollback", previous, described)
        written = write_artifact(output, model, metadata | card(load(), rollback["sha256"]))
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


if __name__ == "__main__":
    main()
