"""The rules of Prometheus follow from the PrometheusRule, and every mistake in it has a place."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.generate.alerts import MANIFEST, AlertError, rules
from tools.run.binaries import find

EXAMPLE = Path(__file__).with_name("prometheus_rule.yml").read_text("utf-8")
PLACE = f"chapter5/hello_pattern/{MANIFEST}: "


@pytest.fixture
def pattern(tmp_path: Path) -> Path:
    directory = tmp_path / "chapter5/hello_pattern"
    (directory / "manifests").mkdir(parents=True)
    return directory


def written(pattern: Path, text: str) -> str | None:
    (pattern / MANIFEST).write_text(text, encoding="utf-8")
    return rules(pattern)


def test_prometheus_accepts_every_field_and_nothing_is_lost(pattern: Path) -> None:
    text = written(pattern, EXAMPLE)
    assert text is not None
    assert text.startswith("# Generated from manifests/prometheus_rule.yml by make fix: ")
    assert yaml.safe_load(text) == {"groups": yaml.safe_load(EXAMPLE)["spec"]["groups"]}
    assert 'expr: api:errors:share5m{job="api"} > 0.05\n' in text
    (pattern / "rules.yml").write_text(text, encoding="utf-8")
    promtool = find("prom/prometheus:v2.53.3").with_name("promtool")
    checked = subprocess.run(
        [promtool, "check", "rules", pattern / "rules.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, "3 rules found" in checked.stdout) == (0, True), checked.stderr


def test_a_pattern_without_alerts_has_no_rules(pattern: Path) -> None:
    assert rules(pattern) is None


ALERT = "spec.groups[0].rules[0]"
# The error of each change: a field and its new value, or None to delete it.
CHANGES: dict[str, tuple[str, Any]] = {
    f"{ALERT}.fro is not a supported field": (f"{ALERT}.fro", "1m"),
    f"{ALERT}.labels.severity is missing": (f"{ALERT}.labels.severity", None),
    f"{ALERT}.labels is missing": (f"{ALERT}.labels", None),
    f"{ALERT}.labels.team: Input should be a valid string": (f"{ALERT}.labels.team", 1),
    f"{ALERT}.annotations.summary is missing": (f"{ALERT}.annotations.summary", None),
    f"{ALERT}.annotations.runbook_url is missing": (f"{ALERT}.annotations.runbook_url", None),
    f"{ALERT}.annotations.runbook_url: String": (f"{ALERT}.annotations.runbook_url", ""),
    f"{ALERT}.expr is missing": (f"{ALERT}.expr", None),
    f"{ALERT}.expr: Input should be a valid string": (f"{ALERT}.expr", 1),
    f"{ALERT}.for should be a duration": (f"{ALERT}.for", "1 minute"),
    f"{ALERT}.alert is missing": (f"{ALERT}.alert", None),
    f"{ALERT}: Input should be a valid dictionary": (ALERT, 7),
    "spec.groups[0].rules[1].for is not a supported": ("spec.groups[0].rules[1].for", "1m"),
    # Newer than the Prometheus of Debian.
    "spec.groups[1].query_offset is not a supported": ("spec.groups[1].query_offset", "1m"),
    # Only Thanos knows it.
    "spec.groups[1].partial_response_strategy is not a supported": (
        "spec.groups[1].partial_response_strategy",
        "warn",
    ),
    "spec.groups[1].interval should be a duration": ("spec.groups[1].interval", "often"),
    "spec.groups[1].rules: List should have": ("spec.groups[1].rules", []),
    "spec.groups: List should have": ("spec.groups", []),
    f"spec.groups[1].rules[0] is a second alert ErrorShare, after {ALERT}": (
        "spec.groups[1].rules[0].alert",
        "ErrorShare",
    ),
    "spec.groups[1] is a second group api, after spec.groups[0]": ("spec.groups[1].name", "api"),
    "spec is missing": ("spec", None),
    "kind: Input should be 'PrometheusRule'": ("kind", "PrometheusRules"),
    "apiVersion: Input should be": ("apiVersion", "monitoring.coreos.com/v2"),
}


def change(node: Any, path: str, value: Any) -> None:
    *parents, last = [int(part) if part.isdecimal() else part for part in re.findall(r"\w+", path)]
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value


@pytest.mark.parametrize(("expected", "changed"), CHANGES.items(), ids=CHANGES)
def test_a_mistake_is_named_with_its_place(
    pattern: Path, expected: str, changed: tuple[str, Any]
) -> None:
    document = yaml.safe_load(EXAMPLE)
    change(document, *changed)
    with pytest.raises(AlertError) as caught:
        written(pattern, yaml.safe_dump(document))
    assert str(caught.value).startswith(PLACE + expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "should be one document"),
        (EXAMPLE + "---\n" + EXAMPLE, "should be one document"),
        ("- 1", "Input should be a valid dictionary"),
        ("a: 1\na: 2", 'duplicate key "a"'),
        ("a:\n\tb: 1", "while scanning for the next token"),
    ],
)
def test_what_is_no_manifest_is_an_error(pattern: Path, text: str, expected: str) -> None:
    with pytest.raises(AlertError) as caught:
        written(pattern, text)
    assert str(caught.value).startswith(PLACE)
    assert expected in str(caught.value).removeprefix(PLACE)


def test_every_mistake_has_its_line(pattern: Path) -> None:
    document = yaml.safe_load(EXAMPLE)
    change(document, f"{ALERT}.labels", None)
    change(document, "spec.groups[1].name", None)
    with pytest.raises(AlertError) as caught:
        written(pattern, yaml.safe_dump(document))
    assert str(caught.value).splitlines() == [
        f"{PLACE}{ALERT}.labels is missing",
        f"{PLACE}spec.groups[1].name is missing",
    ]
