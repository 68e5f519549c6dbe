"""Trains the model of a version and writes it once to where image and server expect it."""

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console

from .artifact import summary, writing_to
from .model import PENALTY, train
from .release import ReleaseError, write_once


def version_of(text: str) -> str:
    """Parses a version, which becomes a directory name and an image tag."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers, as in 2.0.0")
    return text


def penalty_of(text: str) -> float:
    """Parses the penalty, which must be positive and finite."""
    if not 0 < float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("--version", type=version_of, default="1.0.0", help="default: %(default)s")
    parser.add_argument(
        "--penalty",
        type=penalty_of,
        default=PENALTY,
        help="the cost of a training error; default: %(default)s",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "models",
        help="the directory that contains the versions",
    )
    arguments = parser.parse_args()
    directory: Path = arguments.output / arguments.version
    model, metadata = train(penalty=arguments.penalty, version=arguments.version)
    try:
        with writing_to(arguments.output):
            written = write_once(directory, model, metadata)
    except ReleaseError as error:
        sys.exit(f"error: {error}")
    Console(soft_wrap=True, highlight=False).print(summary(written, directory))


if __name__ == "__main__":
    main()
