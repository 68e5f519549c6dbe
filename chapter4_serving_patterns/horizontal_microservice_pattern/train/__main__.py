"""Trains a model for each iris, or for one of them, and writes it to models/."""

import json

from rich.console import Console

from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .iris import FEATURES, LABELS, SAMPLE, SEED
from .model import train

# What the proxy says of the models, whatever they are trained on.
DESCRIBED = {"name": "iris", "features": FEATURES, "labels": LABELS, "sample": SAMPLE}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--positive", choices=LABELS, help="train only the model of this iris")
    parser.add_argument("--seed", type=int, default=SEED, help="split the data differently")
    arguments = parser.parse_args()
    output, console = arguments.output, Console(soft_wrap=True, highlight=False)
    with writing_to(output):
        for name in [arguments.positive] if arguments.positive else LABELS:
            written = write_artifact(output / name, *train(name, arguments.seed))
            console.print(summary(written, output / name))
        if not arguments.positive:
            write_whole(output / "metadata.json", json.dumps(DESCRIBED, indent=2).encode())


if __name__ == "__main__":
    main()
