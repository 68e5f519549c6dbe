"""Every pattern's Kubernetes and Istio manifests keep the rules of `tools/check/manifests.py`."""

from pathlib import Path

import pytest

from tools.check.manifests import (
    ISTIO_CRDS,
    ISTIO_GROUPS,
    ROOT,
    Pattern,
    discover,
    findings,
    istio_schemas,
)

PATTERNS = [path for path in discover(ROOT) if (path / "manifests").is_dir()]


def test_some_patterns_have_manifests() -> None:
    assert PATTERNS, "no pattern with a manifests/ folder was found"


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_manifests_keep_every_rule(pattern: Path) -> None:
    found = findings(pattern)
    assert not found, "\n".join(str(finding) for finding in found)


def test_istio_objects_are_of_kinds_that_istio_has() -> None:
    if not ISTIO_CRDS.is_file():
        pytest.skip("Istio's custom resource definitions are not beside this repository")
    used = {
        (found.version, found.kind)
        for path in PATTERNS
        for found in Pattern(path).objects
        if found.group in ISTIO_GROUPS
    }
    assert used <= set(istio_schemas())
