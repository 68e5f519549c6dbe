"""The repository follows every rule in `tools/check/`."""

import pytest

from tools.check.repository.tree import Repository
from tools.check.rules import Rule, all_rules, findings
from tools.read.patterns import ROOT

REPOSITORY = Repository(ROOT)


def test_some_patterns_have_manifests() -> None:
    assert REPOSITORY.manifests, "no pattern with a manifests/ folder was found"


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: rule.name)
def test_the_repository_follows_the_rule(rule: Rule) -> None:
    found = findings(REPOSITORY, rule)
    assert not found, "\n".join(found)
