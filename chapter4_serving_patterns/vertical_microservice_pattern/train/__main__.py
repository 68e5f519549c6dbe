"""Trains the model of each stage, or of one of them, and writes it to models/."""

import json

from rich.console import Console

from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .digits import FEATURES, LABELS, SAMPLE
from .stages import STAGES, train

# What the proxy says of the models, whatever they are trained on.
DESCRIBED = {"name": "digits", "features": FEATURES, "labels": LABELS, "sample": SAMPLE}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--stage", choices=STAGES, help="train only the model of this stage")
    arguments = parser.parse_args()
    output, console = arguments.output, Console(soft_wrap=True, highlight=False)
    with writing_to(output):
        for name in [arguments.stage] if arguments.stage else STAGES:
            written = write_artifact(output / name, *train(name))
            console.print(summary(written, output / name))
        if not arguments.stage:
            write_whole(output / "metadata.json", json.dumps(DESCRIBED, indent=2).encode())


if __name__ == "__main__":
    main()
