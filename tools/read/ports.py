"""Reads the ports that a pattern publishes on this machine, and the variables that move them.

make uses this before anything is installed, so it cannot use a YAML parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

PUBLISHED = re.compile(r"127\.0\.0\.1:(?:\$\{(\w+):-(\d+)\}|(\d+)):(\d+)")
COMMENT = re.compile(r"(?:^|\s)#.*")


class Port(NamedTuple):
    """A port of a container and the one on this machine; `variable` is empty if none moves it."""

    container: int
    variable: str
    default: int
    host: str


def published_ports(text: str, variables: Mapping[str, str]) -> list[Port]:
    """Finds the published ports in the text of a Compose file."""
    found = []
    for line in text.splitlines():
        for variable, default, fixed, container in PUBLISHED.findall(COMMENT.sub("", line)):
            host = variables.get(variable) or default or fixed
            found.append(Port(int(container), variable, int(default or fixed), host))
    return found
