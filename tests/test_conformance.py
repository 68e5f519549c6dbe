"""The repository keeps every rule of `tools/check/conformance.py`."""

import pytest

from tools.check.conformance import RULES, Rule, findings
from tools.read.patterns import ROOT


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule: Rule) -> None:
    found = findings(ROOT, rule)
    assert not found, "\n".join(found)
