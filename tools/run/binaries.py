"""Finds the server program of an image.

It may be on PATH, in a distribution's folder, in a wheel, or unpacked in the environment.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.read.images import IMAGES, Image, folders_of_the_machine, has_server, repository


class MissingServerError(Exception):
    """A server is not installed; the message says how to install it."""


def find(image: str) -> Path:
    """Returns the path of the server program, whose companions are in the same folder."""
    known = IMAGES[repository(image)]
    for folder in candidate_folders(known):
        if has_server(folder, known):
            return folder / known.program
    raise MissingServerError(f"{known.program} is not installed: {how_to_install(known)}")


def how_to_install(known: Image) -> str:
    ways = [*known.system_commands(), *(["`make servers`"] if known.category else [])]
    return f"run {' or '.join(ways)}"


def candidate_folders(known: Image) -> Iterator[Path]:
    yield from folders_of_the_machine(known)
    if known.wheel:
        # Importing some of these packages starts servers, so only look for the folder.
        spec = importlib.util.find_spec(known.wheel.module)
        if spec and spec.origin:
            yield Path(spec.origin).parent / known.wheel.folder
    if known.unpacked:
        yield known.unpacked.root(Path(sys.prefix)) / known.unpacked.folder
