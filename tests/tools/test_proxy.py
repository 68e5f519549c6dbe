"""A pattern's mesh runs as shipped or with parts of its manifests removed."""

from pathlib import Path
from typing import Any

import pytest

from tools.mesh.proxy import moved, proxy, shipped, translated, without
from tools.read.patterns import ROOT

PATTERN = ROOT / "chapter6_operation_management/circuit_breaker_pattern"


def clusters(config: Any) -> list[Any]:
    found: list[Any] = config["static_resources"]["clusters"]
    return found


def test_the_shipped_configuration_is_the_translation_of_the_manifests() -> None:
    assert without(PATTERN) == shipped(PATTERN)


@pytest.mark.parametrize(
    ("part", "field"),
    [("outlierDetection", "outlier_detection"), ("retries", "retry_policy")],
)
def test_a_removed_part_is_not_translated(part: str, field: str) -> None:
    # Istio retries by default, so without the pattern's policy the default applies.
    before, after = str(shipped(PATTERN)), str(without(PATTERN, part))
    assert field in before
    assert after != before
    assert (field in after) == (part == "retries")


def test_manifests_are_changed_or_left_out_before_the_translation() -> None:
    def change(manifest: dict[str, Any]) -> None:
        if manifest.get("kind") == "VirtualService":
            manifest["spec"]["http"][0]["timeout"] = "9s"
        if manifest.get("kind") == "EnvoyFilter":
            manifest.clear()

    before, after = str(shipped(PATTERN)), str(translated(PATTERN, change))
    assert "'timeout': '1s'" in before
    assert "'timeout': '9s'" in after
    assert "local_reply_config" in before
    assert "local_reply_config" not in after


def test_only_addresses_are_moved() -> None:
    config = {"a": [{"address": "api", "port_value": 8000}, 1], "address": "text"}
    assert moved(config, {("api", 8000): 9}) == {
        "a": [{"address": "127.0.0.1", "port_value": 9}, 1],
        "address": "text",
    }
    with pytest.raises(KeyError):
        moved(config, {})


def test_an_unknown_statistic_is_an_error(tmp_path: Path) -> None:
    config = shipped(PATTERN)
    config["static_resources"]["clusters"] = [
        {"name": cluster["name"], "connect_timeout": "1s"} for cluster in clusters(config)
    ]
    with proxy(PATTERN, config, {}) as running:
        assert running.uptime_seconds() >= 0
        assert running.stat("server.live") == 1
        with pytest.raises(KeyError):
            running.stat("server.lvie")
