"""Reads YAML and rejects what a plain loader accepts: duplicate keys and self-reference."""

from collections.abc import Hashable
from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """A SafeLoader that raises a `yaml.MarkedYAMLError` for both."""

    def construct_document(self, node: yaml.Node) -> Any:
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


def documents_of(text: str) -> list[Any]:
    """Returns the documents of a text; raises a `yaml.YAMLError` if it is not strict YAML."""
    try:
        return list(yaml.load_all(text, Loader=StrictLoader))
    except (TypeError, ValueError) as error:
        raise yaml.YAMLError(f"a key or a value cannot be read: {error}") from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply; write fewer levels") from None
