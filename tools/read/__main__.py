"""Prints the make variables of a pattern for `pattern.mk`: `python -m tools.read DIRECTORY`.

The output is one assignment a line: `CATEGORIES+=redis` for each category that the pattern needs
without Docker, `SERVICES+=api` for each Compose service, `JOBS+=job` for each of them that
runs on demand, `PROFILES+=traces` for each profile of servers that `make up` starts on demand,
`TRAINS:=train` if one of the services trains, `BELOW+=services/iris` for each directory below that
a service is built from, and `MOUNTED+=envoy.yaml` for each file that a service mounts. What only a
server on demand requires is a category if its profile is active.

make runs this before anything is installed, perhaps with an old Python, so it cannot use a YAML
parser. It finds the names by their indentation and rejects any other indentation.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection
from pathlib import Path

from tools.read.images import IMAGES, on_this_machine, repository
from tools.read.profiles import active_profiles, opt_in

EXPORTED = re.compile(r"# Exported from Pipfile\.lock by make lock: (.*)")
# The packages of the root toolchain.
TOOLCHAIN = "packages"
TRAINER = "train"

SERVICE = re.compile(r"  ([\w-]+): *(#.*)?")
KEY = re.compile(r"    ([\w-]+):( .*)?")
IMAGE = re.compile(r"^    image: *(\S+)", re.MULTILINE)
CONTEXT = re.compile(r"""(?:^    build:|\bcontext:) *["']?([\w./-]+)""", re.MULTILINE)
MOUNTED = re.compile(r"(?<![\w.])\./([\w./-]+):/")
WITHIN_A_KEY = re.compile(r"     .*|    - .*")


class PatternError(Exception):
    """A file of the pattern cannot be read."""


def services(text: str) -> dict[str, set[str]]:
    """Returns the keys of each Compose service, by service name."""
    found: dict[str, set[str]] = {}
    keys: set[str] | None = None
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line.startswith((" ", "\t")):
            section = line
            continue
        if section.partition("#")[0].strip() != "services:":
            continue
        if service := SERVICE.fullmatch(line):
            keys = found.setdefault(service[1], set())
        elif keys is not None and (key := KEY.fullmatch(line)):
            keys.add(key[1])
        elif not (keys and WITHIN_A_KEY.fullmatch(line)):
            raise PatternError(
                f"docker-compose.yml:{number}: indent a service by two spaces and its keys by four"
            )
    for name, keys in found.items():
        if not keys & {"build", "image"}:
            raise PatternError(f"docker-compose.yml: {name} has no line `build:` or `image:`")
    if not found:
        raise PatternError("docker-compose.yml: there is no service in it")
    return found


def exported(directory: Path, without: Collection[str]) -> list[str]:
    """Returns the categories from which the requirements in a directory were exported."""
    left_out = [f"requirements-{name}.txt" for name in without]
    paths = [path for path in directory.glob("requirements*.txt") if path.name not in left_out]
    firsts = [path.read_text("utf-8") for path in sorted(paths)]
    marks = [EXPORTED.match(text) for text in firsts]
    return [category for mark in marks if mark for category in mark[1].split()]


def is_job(keys: Collection[str]) -> bool:
    """Tells whether `make run` starts a service with these keys."""
    return "profiles" in keys and "healthcheck" not in keys


def assignments(pattern: Path) -> list[str]:
    """Returns the assignments for make."""
    text = (pattern / "docker-compose.yml").read_text("utf-8")
    found = services(text)
    known = [IMAGES[name] for name in map(repository, IMAGE.findall(text)) if name in IMAGES]
    # The servers of images that patterns do not build, such as Redis.
    servers = [image.category for image in known if image.category and not on_this_machine(image)]
    waiting = opt_in(text)
    active = active_profiles(os.environ)
    idle = [name for name, profile in waiting.items() if profile not in active]
    below = [name for name in dict.fromkeys(CONTEXT.findall(text)) if name != "."]
    of_directories = [name for path in (".", *below) for name in exported(pattern / path, idle)]
    categories = [TOOLCHAIN, *of_directories, *servers]
    return [
        *(f"CATEGORIES+={category}" for category in dict.fromkeys(categories)),
        *(f"SERVICES+={name}" for name in found),
        *(f"JOBS+={name}" for name, keys in found.items() if is_job(keys)),
        *(f"PROFILES+={profile}" for profile in dict.fromkeys(waiting.values())),
        *([f"TRAINS:={TRAINER}"] if TRAINER in found else []),
        *(f"BELOW+={path}" for path in below),
        *(f"MOUNTED+={path}" for path in dict.fromkeys(MOUNTED.findall(text))),
    ]


def main() -> None:
    pattern = Path(sys.argv[1])
    try:
        print(*assignments(pattern), sep="\n")
    except (OSError, PatternError) as error:
        sys.exit(f"error: {pattern}: {error}")


if __name__ == "__main__":
    main()
