"""Says what the rows of the registry look like to a caller."""

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Row(BaseModel):
    """A row is answered as it is stored."""

    model_config = ConfigDict(from_attributes=True)


class ProjectRow(Row):
    """What models are trained for."""

    project_id: UUID
    project_name: str
    description: str | None
    created_datetime: datetime


class ModelRow(Row):
    """What a project predicts with."""

    model_id: UUID
    project_id: UUID
    model_name: str
    description: str | None
    created_datetime: datetime


class ExperimentRow(Row):
    """One training of one version of a model."""

    experiment_id: UUID
    model_id: UUID
    model_version_id: str
    stage: Literal["candidate", "champion", "retired"]
    parameters: dict[str, Any]
    training_dataset: str | None
    validation_dataset: str | None
    test_dataset: str | None
    evaluations: dict[str, Any]
    artifact_file_paths: dict[str, str]
    artifact_sha256: str | None
    created_datetime: datetime


Found = TypeVar("Found", bound=Row)


class Page(BaseModel, Generic[Found]):
    """A part of the rows, the oldest first, and how many there are in all."""

    total: int
    rows: list[Found]
