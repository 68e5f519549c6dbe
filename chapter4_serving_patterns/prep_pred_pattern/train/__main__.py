"""Trains preprocessing and model as a pair, half of it for each service, into models/."""

from pathlib import Path
from typing import Any

from rich.console import Console

from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .model import COPIES, Trained, train


def write(directory: Path, trained: Trained) -> dict[str, Any]:
    """Writes a pair, and a photo to try it with."""
    directory.mkdir(parents=True, exist_ok=True)
    # Before the metadata, whose presence says that everything is there.
    write_whole(directory / "preprocessing.json", trained.preprocessing)
    write_whole(directory / "sample.jpg", trained.sample)
    return write_artifact(directory, trained.model, trained.metadata)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--copies",
        type=int,
        default=COPIES,
        help="in how many warped copies each picture is classified; more make the model slower",
    )
    arguments = parser.parse_args()
    if arguments.copies < 1:
        parser.error("--copies must be at least 1")
    trained = train(arguments.copies)
    with writing_to(arguments.output):
        written = write(arguments.output, trained)
    Console(soft_wrap=True, highlight=False).print(summary(written, arguments.output))


if __name__ == "__main__":
    main()
