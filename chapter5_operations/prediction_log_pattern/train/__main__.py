"""Trains the classifier and the outlier model, and writes them to models/."""

from pathlib import Path

from rich.console import Console

from . import model, outlier
from .artifact import command_line, summary, write_artifact, writing_to
from .iris import SEED


def write(output: Path, seed: int = SEED) -> list[str]:
    """Writes both models, and returns what to say of each."""
    trained = {output: model.train(seed), output / "outlier": outlier.train()}
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
