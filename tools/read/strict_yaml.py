"""Reads YAML and rejects what a plain loader accepts: duplicate keys and harmful anchors."""

from collections.abc import Hashable
from itertools import chain
from typing import Any

import yaml

# The values of a file with its anchors written out; the largest file here has 1,320.
MAX_VALUES = 100_000


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader that raises a `yaml.MarkedYAMLError` for them."""

    def construct_document(self, node: yaml.Node) -> Any:
        if values_in(node, {}) > MAX_VALUES:
            raise yaml.MarkedYAMLError(
                problem=f"its anchors stand for more than {MAX_VALUES} values; use fewer",
                problem_mark=node.start_mark,
            )
        # Without this a collection is filled only after it was returned.
        self.deep_construct = True
        return super().construct_document(node)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise yaml.MarkedYAMLError(
                problem="an anchor refers to itself; write out what it stands for",
                problem_mark=node.start_mark,
            )
        return super().construct_object(node, deep=deep)

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


def values_in(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """Counts the values of a node, those of an anchor once for each reference to it."""
    if node not in known:
        # An anchor that refers to itself is rejected later.
        known[node] = 1
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            parts = chain.from_iterable(parts)
        known[node] += sum(values_in(part, known) for part in parts)
    return known[node]


def documents_of(text: str) -> list[Any]:
    """Returns the documents of a text; raises a `yaml.YAMLError` if it is not strict YAML."""
    try:
        return list(yaml.load_all(text, Loader=StrictLoader))
    except (TypeError, ValueError) as error:
        raise yaml.YAMLError(f"a key or a value cannot be read: {error}") from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply; write fewer levels") from None
