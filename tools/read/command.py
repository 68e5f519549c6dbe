"""Reads options from a command line and removes the listening address from it."""

from collections.abc import Sequence
from itertools import pairwise


def option(command: Sequence[str], name: str) -> str:
    """Returns the value of `--name value` or `--name=value`; empty if the option is absent."""
    for word, following in pairwise([*command, ""]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def without_address(command: Sequence[str]) -> list[str]:
    """Removes --host and --port, in which replicas on one machine differ."""
    kept = []
    words = iter(command)
    for word in words:
        if word in {"--host", "--port"}:
            next(words, None)
        elif word.partition("=")[0] not in {"--host", "--port"}:
            kept.append(word)
    return kept
