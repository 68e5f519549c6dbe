"""Reads the stages of a Dockerfile."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tools.read.compose import Build

# These describe the container itself: its user, and where its programs and files are.
OF_THE_CONTAINER = {"HOME", "LOGNAME", "PATH", "PYTHONDONTWRITEBYTECODE"}


class Stage(NamedTuple):
    image: str
    # If the stage builds on an earlier one, that one's instructions come first.
    instructions: list[tuple[str, str]]

    def last(self, keyword: str) -> str:
        return next((rest for word, rest in reversed(self.instructions) if word == keyword), "")

    def variables(self) -> dict[str, str]:
        """Returns the environment variables that the stage sets for its program."""
        texts = [rest for word, rest in self.instructions if word == "ENV"]
        pairs = [pair.split("=", 1) for text in texts for pair in shlex.split(text)]
        return {name: value for name, value in pairs if name not in OF_THE_CONTAINER}


def stages(dockerfile: Path) -> dict[str, Stage]:
    """Returns the stages of a Dockerfile by name, in order."""
    found: dict[str, Stage] = {}
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            image, *named = [word for word in rest.split() if not word.startswith("--")]
            earlier = found[image].instructions if image in found else []
            found[named[-1] if named else str(len(found))] = Stage(image, [*earlier])
        elif keyword and found:
            [*found.values()][-1].instructions.append((keyword, rest.strip()))
    return found


def stage_of(pattern: Path, build: Build) -> Stage | None:
    """Returns the stage that a service is built from; None if there is no Dockerfile."""
    path = pattern / build.context / build.dockerfile
    found = stages(path) if path.is_file() else {}
    return found[build.target or [*found][-1]] if found else None
