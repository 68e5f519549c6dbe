# Copied from chapter6_operation_management/paramater_based_pattern/app/unique_keys.py
"""Reads YAML in which every key is there once."""

from collections import Counter
from collections.abc import Hashable
from typing import Any

import yaml


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice; PyYAML takes the second one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        for key, times in Counter(str(key.value) for key, _ in node.value).items():
            if times > 1:
                raise ValueError(f"{key} is there {times} times")
        return super().construct_mapping(node, deep)
