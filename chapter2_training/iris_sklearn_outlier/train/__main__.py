"""Trains a model that finds the flowers that are unlike the others, without any labels."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from .artifact import summary, write_artifact
from .model import NAME, NU, train
from .pictures import draw_scores
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
        "--nu", type=float, default=NU, help="about this share of the rows will be outliers"
    )
    arguments = parser.parse_args()
    if not 0 < arguments.nu <= 1:
        parser.error("--nu is above 0 and at most 1")
    output: Path = arguments.output
    with tracked(NAME, f"nu {arguments.nu}"):
        model, metadata = train(arguments.nu)
        written = write_artifact(output, model, metadata)
        record(written, output / written["file"], {"scores.png": draw_scores(written)})
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


if __name__ == "__main__":
    try:
        main()
    except TrackingError as error:
        sys.exit(f"error: {error}")
