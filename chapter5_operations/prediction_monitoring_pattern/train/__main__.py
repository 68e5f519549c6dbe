"""Trains the classifier and the outlier model, and writes them to models/ with the flowers."""

import json
from pathlib import Path

from rich.console import Console
from sklearn.datasets import load_iris

from . import model, outlier
from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .iris import LABELS, SEED


def write(output: Path, seed: int = SEED) -> list[str]:
    """Writes both models and what simulated callers draw from; returns what to say of each."""
    trained = {output: model.train(seed), output / "outlier": outlier.train()}
    summaries = [
        summary(write_artifact(directory, *artifact), directory)
        for directory, artifact in trained.items()
    ]
    iris = load_iris()
    flowers = {"data": iris.data.tolist(), "labels": [LABELS[index] for index in iris.target]}
    write_whole(output / "iris.json", json.dumps(flowers).encode())
    return summaries


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    with writing_to(output):
        written = write(output)
    Console(soft_wrap=True, highlight=False).print("\n".join(written))


if __name__ == "__main__":
    main()
