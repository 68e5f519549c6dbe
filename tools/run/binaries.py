"""Finds the server program of an image: on PATH, in a distribution's folder, or in a wheel."""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.read.images import IMAGES, Image, repository


class MissingServerError(Exception):
    """A server is not installed; the message says how to install it."""


def find(image: str) -> Path:
    """Returns the path of the server program, whose companions are in the same folder."""
    known = IMAGES[repository(image)]
    for folder in candidate_folders(known):
        if all((folder / name).is_file() for name in (known.program, *known.companions)):
            return folder / known.program
    raise MissingServerError(f"{known.program} is not installed: {how_to_install(known)}")


def how_to_install(known: Image) -> str:
    ways = [f"`apt install {known.apt_package}`"] if known.apt_package else []
    ways.append(f"`brew install {known.brew_package}`")
    if known.wheel:
        ways.append("`make servers`")
    return f"run {' or '.join(ways)}"


def candidate_folders(known: Image) -> Iterator[Path]:
    environment_folder = Path(sys.executable).parent
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        # Wheels install their programs here, but the machine's own programs take precedence.
        if Path(folder) == environment_folder:
            continue
        if found := shutil.which(known.program, path=folder):
            yield Path(found).parent
            # The companions may be next to the target of a symlink on PATH.
            yield Path(found).resolve().parent
    if known.distribution_folders:
        folders = Path("/").glob(known.distribution_folders.removeprefix("/"))
        yield from sorted(folders, key=version_of, reverse=True)
    if known.wheel:
        package, inside = known.wheel
        # Importing some of these packages starts servers, so only look for the folder.
        spec = importlib.util.find_spec(package)
        if spec and spec.origin:
            yield Path(spec.origin).parent / inside


def version_of(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.parent.name))
