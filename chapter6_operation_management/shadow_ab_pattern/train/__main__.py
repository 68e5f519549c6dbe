"""Trains the live version, its rival, and a broken rival that the rule has to stop."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from . import rf, svc
from .artifact import command_line, summary, write_artifact, writing_to
from .iris import LABELS, SEED, describe, load


def train_shuffled() -> tuple[bytes, dict[str, Any]]:
    """Returns a forest that has learned labels in random order, as after a wrong join."""
    split = load()
    labels = np.random.default_rng(SEED).permutation(split.y_train)
    forest = rf.fit(split.x_train, labels)
    return rf.export(forest), {
        "name": f"{rf.NAME}_shuffled",
        "version": rf.VERSION,
        "parameters": {"classifier": "RandomForestClassifier", "labels": "shuffled"},
        **describe(split, forest.predict_proba(split.x_test), LABELS),
    }


def write(output: Path) -> list[str]:
    """Writes all three, and returns what to say of each."""
    # The live version comes last: once models/metadata.json exists, everything does.
    trained = {
        output / "shuffled": train_shuffled(),
        output / "rf": rf.train(),
        output: svc.train(),
    }
    return [
        summary(write_artifact(directory, *artifact), directory)
        for directory, artifact in trained.items()
    ]


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    with writing_to(output):
        written = write(output)
    Console(soft_wrap=True, highlight=False).print("\n".join(written))


if __name__ == "__main__":
    main()
