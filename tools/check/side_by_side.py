"""Divides the tests among processes: by file and, in the contract test, by pattern.

A plugin of pytest-xdist. The tests of a file stay in one process and in order: only test_readmes.py
may use the patterns' fixed ports, and servers shared by the tests of a file start only once. The
contract test takes half of the time of a run. It shares servers only within a pattern and uses free
ports, so its patterns are divided, too.
"""

import re
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tools.check.selection import CONTRACT


def group_of(nodeid: str) -> str:
    """Returns the name of the tests that run one after the other in one process."""
    file, _, test = nodeid.partition("::")
    pattern = re.search(r"\[.*?(\w+)/", test) if file == CONTRACT else None
    return f"{file}::{pattern[1]}" if pattern else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives the next group to the next process that is free, in the order of collection."""
    # `selection` has put the longest groups first.
    config.option.loadscopereorder = False
    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = group_of
    return scheduling
