"""Trains both versions, augmented in models/ and plain in models/plain/, and keeps the test set."""

from io import BytesIO

import numpy as np
from rich.console import Console

from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .model import load, train


def main() -> None:
    output = command_line(__doc__).parse_args().output
    console = Console(soft_wrap=True, highlight=False)
    split, held_out = load(), BytesIO()
    np.savez_compressed(held_out, rows=split.x_test, labels=split.y_test)
    with writing_to(output):
        plain = write_artifact(output / "plain", *train("plain"))
        console.print(summary(plain, output / "plain"))
        write_whole(output / "held_out.npz", held_out.getvalue())
        # Augmented comes last: once models/metadata.json exists, everything does.
        console.print(summary(write_artifact(output, *train("augmented")), output))


if __name__ == "__main__":
    main()
