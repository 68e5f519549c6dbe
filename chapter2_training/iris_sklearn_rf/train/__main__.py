# Copied from chapter2_training/iris_sklearn_svc/train/__main__.py with the support vector classifier that most serving patterns predict with->the random forest that challenges the support vector classifier
"""Trains the random forest that challenges the support vector classifier."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from .artifact import summary, write_artifact
from .iris import SEED
from .model import NAME, train
from .pictures import draw_confusion
from .tracking import TrackingError, record, tracked


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "models",
        help="the directory of the model and its metadata",
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="another one splits the rows in another way"
    )
    arguments = parser.parse_args()
    if not 0 <= arguments.seed < 2**32:
        parser.error("--seed is a whole number from 0 to 4294967295")
    output: Path = arguments.output
    with tracked(NAME, f"seed {arguments.seed}"):
        model, metadata = train(arguments.seed)
        written = write_artifact(output, model, metadata)
        record(written, output / written["file"], {"confusion_matrix.png": draw_confusion(written)})
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


if __name__ == "__main__":
    try:
        main()
    except TrackingError as error:
        sys.exit(f"error: {error}")
