"""Decides which tests run: of some patterns, without some, and those that take long.

A plugin of pytest. Its options take names: a pattern, a chapter, `tools` for all tests that belong
to no pattern, and `everything`. A test belongs to the pattern that its file is named for, or else
to those that its `pattern` mark or its parameters name.
"""

import os
import re
from collections.abc import Iterable
from functools import cache

import pytest

from tools.check.changes import EVERYTHING, TOOLS
from tools.read.patterns import ROOT, patterns

# The one switch for tests that take long: `make test FULL=1`. Tests marked `slow` run only then,
# and a test that may try more (schemathesis, say) asks here whether it is to.
FULL = os.environ.get("FULL", "") not in {"", "0"}
OPTIONS = ("--only", "--without")


@cache
def known() -> dict[str, str]:
    """Maps the name of each pattern to that of its directory, from the root."""
    return {pattern.name: pattern.relative_to(ROOT).as_posix() for pattern in patterns()}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("selection", "which tests run")
    group.addoption("--only", default="", help="run only the tests of these, e.g. `tools`")
    group.addoption("--without", default="", help="run all tests but those of these")


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a name that is none: it would select nothing, or leave nothing out."""
    for option in OPTIONS:
        names_of_option(config, option)


def names_of_option(config: pytest.Config, option: str) -> set[str]:
    """Returns what an option names: whole names of patterns, and `tools`."""
    names = {*known().values(), TOOLS}
    found: set[str] = set()
    for word in str(config.getoption(option)).split():
        meant = {name for name in names if word in {name, *name.split("/"), EVERYTHING}}
        if not meant:
            there_are = ", ".join(sorted(names))
            raise pytest.UsageError(f"{option}: there is no {word}; there are: {there_are}")
        found |= meant
    return found


def belongs_to(item: pytest.Item) -> set[str]:
    """Names the patterns that a test belongs to, or the toolchain."""
    marked = {name for mark in item.iter_markers("pattern") for name in mark.args}
    if marked:
        return marked
    if item.path.is_relative_to(item.config.rootpath / "tests/tools"):
        return {TOOLS}
    words = [item.path.stem.removeprefix("test_")]
    if words[0] not in known():
        words = re.findall(r"\w+", item.name.partition("[")[2])
    return {known()[word] for word in words if word in known()} or {TOOLS}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted, unwanted = (names_of_option(config, option) for option in OPTIONS)

    def runs(item: pytest.Item) -> bool:
        if item.get_closest_marker("slow") and not FULL:
            return False
        owners = belongs_to(item)
        return bool(not wanted or owners & wanted) and not owners & unwanted

    if left_out := [item for item in items if not runs(item)]:
        config.hook.pytest_deselected(items=left_out)
    items[:] = in_order([item for item in items if runs(item)], hasattr(config, "workerinput"))


def in_order(items: Iterable[pytest.Item], side_by_side: bool) -> list[pytest.Item]:
    """Puts the file that takes longest first where others run beside it, or it would end last."""
    return sorted(items, key=lambda item: side_by_side and item.path.name != "test_readmes.py")
