"""Selects the tests to run by pattern, and leaves out slow tests.

A pytest plugin. Its options take names of patterns and chapters, `tools` for all tests that belong
to no pattern, and `everything`. In the directory of a chapter or a pattern, or with its path as an
argument, pytest runs its tests and the contract test of its servers.

A test belongs to the patterns in its `pattern` mark, or else to the pattern that its file is named
after, or else to the patterns in its parameters.
"""

import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from tools.check.changes import EVERYTHING, TOOLS
from tools.read.patterns import ROOT, patterns

# The switch for slow tests: `make test FULL=1`. Tests marked `slow` run only if it is set, and
# tests that generate examples read it to decide how many.
FULL = os.environ.get("FULL", "") not in {"", "0"}
OPTIONS = ("--only", "--without")
CONTRACT = "tests/test_contract.py"


@cache
def known() -> dict[str, str]:
    """Maps the name of each pattern to its directory, relative to the root."""
    return {pattern.name: pattern.relative_to(ROOT).as_posix() for pattern in patterns()}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("selection", "which tests run")
    group.addoption("--only", default="", help="run only tests of these, e.g. `tools`")
    group.addoption("--without", default="", help="run all tests except those of these")


def pytest_configure(config: pytest.Config) -> None:
    """Rejects unknown names, which would silently select or exclude nothing."""
    select_directories(config)
    for option in OPTIONS:
        names_of_option(config, option)


def select_directories(config: pytest.Config) -> None:
    """Replaces directories of chapters and patterns by their tests, which are under tests/."""
    chapters = {directory.partition("/")[0] for directory in known().values()}
    selected = []
    for argument in config.args:
        path = os.path.relpath(config.invocation_params.dir / argument, config.rootpath)
        if (parts := Path(path).parts[:2]) and parts[0] in chapters:
            selected.append("/".join(parts))
    if not selected:
        return
    if len(selected) < len(config.args):
        raise pytest.UsageError("directories of patterns cannot be combined with other tests")
    config.option.only = " ".join([config.option.only, *selected])
    files = [
        "tests/{}/test_{}.py".format(*name.split("/")) if "/" in name else f"tests/{name}"
        for name in selected
    ]
    config.args = [str(config.rootpath / file) for file in [*files, CONTRACT]]


def names_of_option(config: pytest.Config, option: str) -> set[str]:
    """Expands the words of an option into directories of patterns and `tools`."""
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
    """Returns the patterns that a test belongs to, or `tools`."""
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
    """Moves the longest files to the front of parallel runs; otherwise they would end last."""
    longest = ["test_readmes.py", Path(CONTRACT).name]

    def place(item: pytest.Item) -> int:
        return longest.index(item.path.name) if item.path.name in longest else len(longest)

    return sorted(items, key=place) if side_by_side else list(items)
