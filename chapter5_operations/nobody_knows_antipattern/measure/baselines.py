"""The same without what the pattern is about: an unseeded training, and no look at the reviews."""

import secrets
import sys
from pathlib import Path

from pydantic import TypeAdapter

from ..app import main
from ..app.reviewed import Parameters
from ..train.artifact import write_artifact
from ..train.model import train


def unreviewed(directory: Path) -> Parameters:
    """Takes the parameters as they are."""
    content = (directory / "parameters.json").read_bytes()
    return TypeAdapter(Parameters).validate_json(content)


main.load = unreviewed  # type: ignore[attr-defined]
without_review = main.app

if __name__ == "__main__":
    # As a notebook does: every run splits the data anew.
    write_artifact(Path(sys.argv[-1]), *train(seed=secrets.randbelow(2**32)))
