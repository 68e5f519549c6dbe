"""Reads which servers start only if `make up PROFILE=name` asks for them.

make uses this before anything is installed, so it cannot use a YAML parser. A service with
`profiles` and without a `healthcheck` is a job, which `make run` starts.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

BLOCK = re.compile(r"^  ([\w-]+):.*\n(?:(?:    .*|[ \t]*(?:#.*)?)\n)*", re.MULTILINE)
PROFILE = re.compile(r"^    profiles:(?: *\[ *| *\n +- *)([\w-]+)", re.MULTILINE)
HEALTHCHECK = re.compile(r"^    healthcheck:", re.MULTILINE)


def profile_of(block: str) -> str:
    """Returns the profile that a service waits for; empty for a job and for one without."""
    found = PROFILE.search(block)
    return found[1] if found and HEALTHCHECK.search(block) else ""


def opt_in(text: str) -> dict[str, str]:
    """Returns the profile of each server in a Compose file that has one."""
    # A volume may have the name of a service.
    profiles = ((block[1], profile_of(block[0])) for block in BLOCK.finditer(f"{text}\n"))
    return {name: profile for name, profile in profiles if profile}


def without_waiting(text: str, active: Container[str]) -> str:
    """Removes the servers whose profile is not active from the text of a Compose file."""

    def kept(block: re.Match[str]) -> str:
        profile = profile_of(block[0])
        return block[0] if not profile or profile in active else ""

    return BLOCK.sub(kept, f"{text}\n")


def active_profiles(variables: Mapping[str, str]) -> list[str]:
    """Returns the profiles that the environment names, as Compose reads them."""
    return [name for name in variables.get("COMPOSE_PROFILES", "").split(",") if name]
