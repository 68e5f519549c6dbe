"""Trains the model and writes it into models/, where the server looks for it."""

import argparse
from pathlib import Path

from rich.console import Console

from .artifact import summary, write_artifact
from .model import train


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parents[1] / "models",
        help="the directory of the model and its metadata",
    )
    output: Path = parser.parse_args().output
    written = write_artifact(output, *train())
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


if __name__ == "__main__":
    main()
