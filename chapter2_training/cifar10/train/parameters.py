"""Says what a run of the pipeline can be told, and checks it before anything is started."""

import argparse
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

PATTERN = Path(__file__).parents[1]
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
# As published beside the download; the binary version holds no pickle.
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d13530"
CIFAR10_IMAGES = 10_000
SYNTHETIC_IMAGES = 400


@dataclass(frozen=True)
class Parameters:
    """What one run is told; a step depends on some of it, as `step.STEPS` says."""

    data: str
    images: int
    archive_url: str
    archive_md5: str
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
        """What answers while the model is scored: an image that was built, or a process."""
        return "image" if self.server else "process"

    def arguments(self) -> list[str]:
        """Returns the command line that says the same, for the process of a step."""
        return [
            f"--{field.name.replace('_', '-')}={getattr(self, field.name)}"
            for field in fields(self)
        ]


def parse(program: str, description: str | None, argv: Sequence[str] | None = None) -> Parameters:
    """Reads a command line; what cannot be is refused with the name of the argument."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    add = parser.add_argument
    add("--data", choices=["synthetic", "cifar10"], default="synthetic", help="which images")
    add(
        "--images",
        type=number(1, CIFAR10_IMAGES),
        help=f"of each of the six files; {SYNTHETIC_IMAGES} are drawn, {CIFAR10_IMAGES} loaded",
    )
    add("--archive-url", default=ARCHIVE_URL, help="where CIFAR-10's binary version is")
    add("--archive-md5", default=ARCHIVE_MD5, help="the digest that it has to have")
    add("--net", choices=["simple", "vgg11", "vgg16"], default="simple")
    add("--epochs", type=number(0, 1_000), default=5)
    add("--batch-size", type=number(2, 4_096), default=32)
    add("--learning-rate", type=real(0, 10), default=0.003)
    add("--seed", type=number(0, 2**32 - 1), default=0, help="of the drawing and the training")
    add("--threads", type=number(1, 256), default=1, help="another number adds in another order")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if any")
    add(
        "--margin",
        type=real(-1, 0.9),
        default=0.1,
        help="how far above chance the accuracy has to be for the model to be published",
    )
    add("--server", default="", help="the URL of a server of the built model; none: start one")
    add("--output", type=Path, default=PATTERN / "models", help="where the model is published")
    add("--steps", type=Path, help="where the steps keep what they make; data beside --output")
    given = vars(parser.parse_args(argv))
    drawn = given["data"] == "synthetic"
    given["images"] = given["images"] or (SYNTHETIC_IMAGES if drawn else CIFAR10_IMAGES)
    given["output"] = given["output"].absolute()
    given["steps"] = (given["steps"] or given["output"].parent / "data").absolute()
    return Parameters(**given)


def number(least: int, most: int) -> Callable[[str], int]:
    """Returns what reads a whole number within bounds."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a whole number from {least} to {most}"
            )
        return int(text)

    return read


def real(above: float, below: float) -> Callable[[str], float]:
    """Returns what reads a number between bounds, which NaN and infinity are not."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not above < value < below:
            raise argparse.ArgumentTypeError(f"{text!r} is not between {above} and {below}")
        return value

    return read
