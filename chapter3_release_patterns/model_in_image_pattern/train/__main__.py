"""Trains the model of a version and writes it, once, to where image and server look for it."""

import argparse
import re
import sys
from pathlib import Path

from rich.console import Console

from .artifact import summary
from .model import PENALTY, train
from .release import ReleaseError, write_once


def version_of(text: str) -> str:
    """Returns the version; it becomes the name of a directory and the tag of an image."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers, as in 2.0.0")
    return text


def penalty_of(text: str) -> float:
    """Returns the cost of an error, which has to be above zero."""
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
        help="what an error in training costs; default: %(default)s",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "models",
        help="the directory of the versions",
    )
    arguments = parser.parse_args()
    directory: Path = arguments.output / arguments.version
    model, metadata = train(penalty=arguments.penalty, version=arguments.version)
    try:
        written = write_once(directory, model, metadata)
    except ReleaseError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(f"error: cannot write into {arguments.output}: {error}")
    Console(soft_wrap=True, highlight=False).print(summary(written, directory))


if __name__ == "__main__":
    main()
