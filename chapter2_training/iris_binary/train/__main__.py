"""Trains a classifier that tells one iris from the other two."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from .artifact import summary, write_artifact
from .iris import LABELS, SEED
from .model import train
from .pictures import draw_confusion
from .tracking import TrackingError, record, tracked

EXPERIMENT = "iris_binary"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "models",
        help="the directory of the model and its metadata",
    )
    parser.add_argument(
        "--positive", choices=LABELS, default="virginica", help="the iris whose label is 1"
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="another one splits the rows in another way"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.seed < 2**32:
        parser.error("--seed is a whole number from 0 to 4294967295")
    output: Path = arguments.output
    with tracked(EXPERIMENT, f"{arguments.positive} seed {arguments.seed}"):
        model, metadata = train(arguments.positive, arguments.seed)
        written = write_artifact(output, model, metadata)
        record(written, output / written["file"], {"confusion_matrix.png": draw_confusion(written)})
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


if __name__ == "__main__":
    try:
        main()
    except TrackingError as error:
        sys.exit(f"error: {error}")
