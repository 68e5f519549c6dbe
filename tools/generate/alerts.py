"""Translates the PrometheusRule of a pattern to the rules.yml that its Prometheus reads.

It accepts what both the operator and Prometheus 2.42 know. An alert must say how urgent it is, what
happens, and where to read what to do about it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from tools.mesh.translate import PlainDumper
from tools.read.strict_yaml import documents_of

MANIFEST = "manifests/prometheus_rule.yml"
FIRST_LINE = f"# Generated from {MANIFEST} by make fix: change that, not this.\n"
UNITS = "".join(f"([0-9]+{unit})?" for unit in ("y", "w", "d", "h", "m", "s", "ms"))

Text = Annotated[str, Field(min_length=1)]
Duration = Annotated[str, Field(min_length=1, pattern=f"^(0|{UNITS})$")]


class AlertError(Exception):
    """A PrometheusRule has no valid translation; each line of the message names its place."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Labels(Strict, extra="allow"):
    __pydantic_extra__: dict[str, str]
    severity: Text


class Annotations(Strict, extra="allow"):
    __pydantic_extra__: dict[str, str]
    summary: Text
    runbook_url: Text


class Alert(Strict):
    alert: Text
    expr: Text
    pending: Duration | None = Field(None, alias="for")
    keep_firing_for: Duration | None = None
    labels: Labels
    annotations: Annotations


class Recording(Strict):
    record: Text
    expr: Text
    labels: dict[str, str] = {}


# Parts of the place of an error that are not in the file.
ALERT, RECORDING = "(alert)", "(recording)"
Rule = Annotated[
    Annotated[Alert, Tag(ALERT)] | Annotated[Recording, Tag(RECORDING)],
    Discriminator(lambda raw: RECORDING if isinstance(raw, dict) and "record" in raw else ALERT),
]


class Group(Strict):
    name: Text
    interval: Duration | None = None
    limit: int | None = None
    rules: list[Rule] = Field(min_length=1)


class Spec(Strict):
    groups: list[Group] = Field(min_length=1)


class PrometheusRule(Strict):
    version: Literal["monitoring.coreos.com/v1"] = Field(alias="apiVersion")
    kind: Literal["PrometheusRule"]
    metadata: dict[str, Any]
    spec: Spec


def rules(pattern: Path) -> str | None:
    """Returns the text of rules.yml, or None for a pattern without alerts."""
    path = pattern / MANIFEST
    if not path.exists():
        return None
    place = f"{pattern.parent.name}/{pattern.name}/{MANIFEST}"
    try:
        (document,) = documents_of(path.read_text(encoding="utf-8"))
        problems = [*twice(PrometheusRule.model_validate(document).spec)]
    except yaml.YAMLError as error:
        problems = [" ".join(str(error).split())]
    except ValidationError as error:
        problems = [problem(part["loc"], part["type"], part["msg"]) for part in error.errors()]
    except ValueError:
        problems = ["should be one document of YAML in UTF-8"]
    if problems:
        raise AlertError("\n".join(f"{place}: {each}" for each in problems))
    groups = {"groups": document["spec"]["groups"]}
    return FIRST_LINE + yaml.dump(groups, Dumper=PlainDumper, sort_keys=False, width=1000)


def problem(location: tuple[int | str, ...], kind: str, message: str) -> str:
    reasons = {
        "extra_forbidden": " is not a supported field",
        "missing": " is missing",
        "string_pattern_mismatch": " should be a duration such as 30s or 1h30m",
    }
    parts = [part for part in location if part not in (ALERT, RECORDING)]
    shown = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return (shown + reasons.get(kind, f": {message}")).lstrip(".: ")


def twice(spec: Spec) -> Iterator[str]:
    """Yields what has the name of another: Prometheus merges alerts and rejects groups."""
    first: dict[str, str] = {}
    for number, group in enumerate(spec.groups):
        at = f"spec.groups[{number}]"
        named = {at: f"group {group.name}"}
        for index, rule in enumerate(group.rules):
            if isinstance(rule, Alert):
                named[f"{at}.rules[{index}]"] = f"alert {rule.alert}"
        for place, name in named.items():
            if first.setdefault(name, place) != place:
                yield f"{place} is a second {name}, after {first[name]}"
