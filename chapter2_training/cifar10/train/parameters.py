"""Defines the parameters of the pipeline and validates them before anything starts."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

PATTERN = Path(__file__).parents[1]
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
# Published on the download page.
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_IMAGES = 10_000
SYNTHETIC_IMAGES = 400


@dataclass(frozen=True)
class Parameters:
    """The parameters of one run; `step.STEPS` lists those that a step depends on."""

    data: str
    images: int
    archive_url: str
    archive_sha256: str
    net: str
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    threads: int
    device: str
    margin: float
    server: str
    output: Path
    steps: Path

    @property
    def served_by(self) -> str:
        """Whether the scored server is a container image or a local process."""
        return "image" if self.server else "process"

    def arguments(self) -> list[str]:
        """Returns the same parameters as a command line for the process of a step."""
        return [
            f"--{field.name.replace('_', '-')}={getattr(self, field.name)}"
            for field in fields(self)
        ]


def parse(program: str, description: str | None, argv: Sequence[str] | None = None) -> Parameters:
    """Parses a command line; an invalid value is rejected with the name of the argument."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    add = parser.add_argument
    add("--data", choices=["synthetic", "cifar10"], default="synthetic", help="which images")
    add(
        "--images",
        type=number(1, CIFAR10_IMAGES),
        help=f"of each of the six files; {SYNTHETIC_IMAGES} are drawn, {CIFAR10_IMAGES} loaded",
    )
    add("--archive-url", default=ARCHIVE_URL, help="where CIFAR-10's binary version is")
    add("--archive-sha256", default=ARCHIVE_SHA256, help="its expected digest")
    add("--net", choices=["simple", "vgg11", "vgg16"], default="simple")
    add("--epochs", type=number(0, 1_000), default=5)
    add("--batch-size", type=number(2, 4_096), default=32)
    add("--learning-rate", type=real(0, 10), default=0.003)
    add("--seed", type=number(0, 2**32 - 1), default=0, help="seeds the drawing and the training")
    add(
        "--threads",
        type=number(1, 256),
        default=1,
        help="changes the order of sums, so also the bytes",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if any")
    add(
        "--margin",
        type=real(-1, 0.9),
        default=0.1,
        help="how far above chance the accuracy must be for the model to be published",
    )
    add("--server", default="", help="the URL of a server of the built model; starts one if empty")
    add("--output", type=Path, default=PATTERN / "models", help="where to publish the model")
    add(
        "--steps",
        type=Path,
        help="where the steps keep their results (default: data next to --output)",
    )
    given = vars(parser.parse_args(argv))
    drawn = given["data"] == "synthetic"
    given["images"] = given["images"] or (SYNTHETIC_IMAGES if drawn else CIFAR10_IMAGES)
    given["output"] = given["output"].absolute()
    given["steps"] = (given["steps"] or given["output"].parent / "data").absolute()
    return Parameters(**given)


def number(least: int, most: int) -> Callable[[str], int]:
    """Returns a parser for whole numbers from `least` to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {least} to {most}"
            )
        return int(text)

    return read


def real(above: float, below: float) -> Callable[[str], float]:
    """Returns a parser for numbers strictly between two bounds; NaN and infinity are rejected."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not above < value < below:
            raise argparse.ArgumentTypeError(f"{text!r} is not between {above} and {below}")
        return value

    return read
