# Copied from chapter6_operation_management/shadow_ab_pattern/app/rule.py
"""What the rule says, which somebody has to write down before the trial begins."""

from pydantic import BaseModel, ConfigDict, Field


class Rule(BaseModel):
    """When the new version may go live."""

    # Refuses unknown keys, NaN, and values of another type, such as "0.9".
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    min_pairs: int = Field(ge=100, le=10_000_000)
    agreement_at_least: float = Field(gt=0, lt=1)
    error_share_at_most: float = Field(ge=0, lt=1)
    p99_ratio_at_most: float = Field(gt=0, le=1_000)
    unpaired_share_at_most: float = Field(ge=0, lt=1)
