"""Reads YAML in which no key is written twice: a plain loader keeps the last one without a word."""

from collections.abc import Hashable
from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader that raises a `yaml.MarkedYAMLError` for a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            # `<<` may merge several mappings.
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f'the key "{key.value}" is there twice', problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def documents_of(text: str) -> list[Any]:
    """Returns the documents of a text.

    Raises:
        yaml.YAMLError: it is not YAML, or a key is there twice.
    """
    # StrictLoader is a SafeLoader.
    return list(yaml.load_all(text, Loader=StrictLoader))
