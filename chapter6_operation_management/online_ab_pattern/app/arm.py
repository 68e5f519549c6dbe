# Copied from chapter6_operation_management/shadow_ab_pattern/app/arm.py
"""Says in each record which version has written it."""

from typing import Any

from .log import Log, line_of
from .settings import Settings


class ArmLog(Log):
    """A log of one version: its arm of the comparison, and its model."""

    def __init__(self, settings: Settings, model: str) -> None:
        self.marks = {"arm": settings.arm, "model": model}
        super().__init__(settings.log_directory, settings.log_segment_bytes, settings.log_max_bytes)

    def append(self, kind: str, record_id: str, **fields: Any) -> bool:
        return super().append(kind, record_id, **self.marks, **fields)

    def line_of_dropped(self) -> bytes:
        lost = {"count": self.dropped, "since": self.since, "until": self.until}
        return line_of("dropped", None, **self.marks, **lost)
