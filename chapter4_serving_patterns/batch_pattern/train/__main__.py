"""Trains the model and writes it to models/, with the rows that fill the table of the example."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .model import COPIES, load, train


def write(directory: Path, copies: int) -> dict[str, Any]:
    """Writes the images of the data set and a model with this many copies per row."""
    x_train, _, x_test, _ = load()
    rows = io.BytesIO()
    np.save(rows, np.concatenate([x_train, x_test]))
    directory.mkdir(parents=True, exist_ok=True)
    # Before the metadata, whose presence says that everything is there.
    write_whole(directory / "rows.npy", rows.getvalue())
    return write_artifact(directory, *train(copies))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--copies",
        type=int,
        default=COPIES,
        help="in how many warped copies each row is classified; more copies make the model slower",
    )
    arguments = parser.parse_args()
    if arguments.copies < 1:
        parser.error("--copies must be at least 1")
    with writing_to(arguments.output):
        written = write(arguments.output, arguments.copies)
    Console(soft_wrap=True, highlight=False).print(summary(written, arguments.output))


if __name__ == "__main__":
    main()
