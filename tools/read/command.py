"""Reads the words of a command: its options, and what it is beside its address."""

from collections.abc import Sequence
from itertools import pairwise


def option(command: Sequence[str], name: str) -> str:
    """Returns the value of an option, `--name value` or `--name=value`; empty where it is not."""
    for word, following in pairwise([*command, ""]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def without_address(command: Sequence[str]) -> list[str]:
    """Returns a command without where it listens: replicas on one machine differ in that."""
    kept = []
    words = iter(command)
    for word in words:
        if word in {"--host", "--port"}:
            next(words, None)
        elif word.partition("=")[0] not in {"--host", "--port"}:
            kept.append(word)
    return kept
