"""Registers the rules of the repository and finds violations.

A rule is a function that yields findings: what is wrong and, after a semicolon, what to do. Its
name says what is true if there are none. `@rule()` checks the repository, and its findings begin
with a file; `@rule(pods)` checks each pod of each pattern's manifests.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, overload

from tools.check.manifests.subjects import Pattern, Subject
from tools.check.repository.tree import Repository
from tools.read.patterns import ROOT

S = TypeVar("S", bound=Subject)
Check = Callable[[S], Iterator[str]]


@dataclass(frozen=True)
class Rule:
    name: str
    check: Callable[[Any], Iterator[str]]
    # Selects the checked parts of a pattern's manifests; None for a rule about the repository.
    subjects: Callable[[Pattern], Iterable[Any]] | None
    # Rules about shape run first; the others may rely on the types of all fields.
    is_of_shape: bool


RULES: dict[str, Rule] = {}


@overload
def rule() -> Callable[[Callable[[Repository], Iterator[str]]], Rule]: ...
@overload
def rule(
    subjects: Callable[[Pattern], Iterable[S]], *, is_of_shape: bool = False
) -> Callable[[Check[S]], Rule]: ...
def rule(
    subjects: Callable[[Pattern], Iterable[Any]] | None = None, *, is_of_shape: bool = False
) -> Callable[[Callable[[Any], Iterator[str]]], Rule]:
    """Registers a function as a rule."""

    def register(check: Callable[[Any], Iterator[str]]) -> Rule:
        if check.__name__ in RULES:
            raise ValueError(f"there are two rules named {check.__name__}; rename one")
        RULES[check.__name__] = Rule(check.__name__, check, subjects, is_of_shape)
        return RULES[check.__name__]

    return register


def all_rules() -> list[Rule]:
    """Imports every module in the folders next to this file and returns their rules."""
    here = Path(__file__).resolve().parent
    for path in sorted(here.glob("*/*.py")):
        import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return list(RULES.values())


def findings(repository: Repository, rule: Rule) -> list[str]:
    """Returns the violations of a rule, with paths relative to the root."""
    try:
        found = sorted(messages(repository, rule))
    # A missing or malformed file is a finding rather than a traceback.
    except Exception as error:
        found = [f"{rule.name}: cannot be checked: {error!r}; fix that file"]
    return [finding.replace(f"{repository.root}/", "") for finding in found]


def messages(repository: Repository, rule: Rule) -> Iterator[str]:
    if rule.subjects is None:
        yield from rule.check(repository)
        return
    for pattern in repository.manifests:
        if rule.is_of_shape or is_well_formed(pattern):
            for subject in rule.subjects(pattern):
                for message in rule.check(subject):
                    yield f"{subject.place}: {message}"


@cache
def is_well_formed(pattern: Pattern) -> bool:
    """Tells whether the manifests of a pattern pass all rules about shape."""
    return not any(
        message
        for each in all_rules()
        if each.is_of_shape and each.subjects
        for subject in each.subjects(pattern)
        for message in each.check(subject)
    )
