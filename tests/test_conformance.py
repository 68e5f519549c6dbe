"""The repository keeps every rule of `tools/conformance.py`."""

import pytest

from tools.conformance import RULES, Rule, findings
from tools.patterns import ROOT


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps_the_rule(rule: Rule) -> None:
    found = findings(ROOT, rule)
    assert not found, "\n".join(found)
