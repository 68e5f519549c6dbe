"""Reads the rule, which somebody has to write down before the trial begins."""

from collections import Counter
from collections.abc import Hashable
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_BYTES = 20_000


class RuleError(Exception):
    """The file is no rule; the message names the first key that is wrong."""


class Rule(BaseModel):
    """When the new version may go live."""

    # Refuses unknown keys, NaN, and values of another type, such as "0.9".
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    min_pairs: int = Field(ge=100, le=10_000_000)
    agreement_at_least: float = Field(gt=0, lt=1)
    error_share_at_most: float = Field(ge=0, lt=1)
    p99_ratio_at_most: float = Field(gt=0, le=1_000)
    unpaired_share_at_most: float = Field(ge=0, lt=1)


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is there twice; PyYAML takes the second one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        for key, times in Counter(str(key.value) for key, _ in node.value).items():
            if times > 1:
                raise ValueError(f"{key} is there {times} times")
        return super().construct_mapping(node, deep)


def read(path: Path) -> tuple[Rule, str]:
    """Returns the rule and the SHA-256 of the file.

    Raises:
        RuleError: the file is missing or wrong.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RuleError(f"{path}: the file is larger than {MAX_BYTES} bytes")
        content = path.read_bytes()
        rule = Rule.model_validate(UniqueKeys(content).get_single_data())
    except RuleError:
        raise
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RuleError(f"{path}: {where}: {first['msg']}") from None
    except Exception as error:
        # PyYAML also raises errors of Python, such as an IndexError for `!!int ""`.
        raise RuleError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    return rule, sha256(content).hexdigest()
