"""Reads YAML and rejects duplicate keys, of which a plain loader silently keeps the last."""

from collections.abc import Hashable
from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader that raises a `yaml.MarkedYAMLError` for a duplicate key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            # `<<` may appear several times.
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f'duplicate key "{key.value}"', problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def documents_of(text: str) -> list[Any]:
    """Returns the documents of a text; raises a `yaml.YAMLError` if it is not strict YAML."""
    return list(yaml.load_all(text, Loader=StrictLoader))
