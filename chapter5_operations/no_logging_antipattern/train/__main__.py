"""Trains the model and another one, and writes both to models/ with the flowers."""

import json
from pathlib import Path

from rich.console import Console
from sklearn.datasets import load_iris

from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .iris import LABELS
from .model import train

# What the simulation starts on one replica by mistake: another model, with labels in another order.
OTHER_PENALTY = 0.1
OTHER_LABELS = [LABELS[0], *reversed(LABELS[1:])]


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    model, metadata = train()
    other, described = train(version="2", penalty=OTHER_PENALTY)
    iris = load_iris()
    flowers = {"data": iris.data.tolist(), "labels": [LABELS[index] for index in iris.target]}
    with writing_to(output):
        write_artifact(output / "other", other, described | {"labels": OTHER_LABELS})
        write_whole(output / "iris.json", json.dumps(flowers).encode())
        written = write_artifact(output, model, metadata)
    Console(soft_wrap=True, highlight=False).print(summary(written, output))


if __name__ == "__main__":
    main()
