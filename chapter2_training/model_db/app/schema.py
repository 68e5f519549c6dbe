"""Defines the requests, responses and errors, and their size limits."""

import json
import math
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

# Limits the JSON of each of an experiment's parameters, evaluations and paths. Parsed, nested empty
# lists take sixteen times as much memory, and every list request parses and serialises all rows.
MAX_JSON_BYTES = 8_192

Json = TypeVar("Json", bound=dict[str, Any])


def check_finite(value: JsonValue) -> JsonValue:
    """Rejects NaN and infinity at any depth, because JSON has neither.

    Raises:
        ValueError: a number is not finite.
    """
    match value:
        case dict():
            for item in value.values():
                check_finite(item)
        case list():
            for item in value:
                check_finite(item)
        case float() if not math.isfinite(value):
            raise ValueError("NaN and infinity are not finite numbers")
    return value


def check_size(values: Json) -> Json:
    """Rejects values that would make lists slow and large.

    Raises:
        ValueError: they take more than MAX_JSON_BYTES.
    """
    if (size := len(json.dumps(values))) > MAX_JSON_BYTES:
        raise ValueError(f"{size} bytes of JSON exceed the limit of {MAX_JSON_BYTES}")
    return values


# In the examples of `/docs`; the reader puts an ID of the registry in its place.
SOME_ID = "00000000-0000-4000-8000-000000000000"
# Names are part of URLs such as /projects/name/iris.
Name = Annotated[str, Field(max_length=255, pattern=r"^\w([\w .+:@-]*\w)?$")]
# PostgreSQL cannot store the character NUL.
Line = Annotated[str, Field(max_length=1_000, pattern=r"^[^\x00]*$")]
Key = Annotated[str, Field(min_length=1, max_length=255)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Values = Annotated[dict[Key, JsonValue], AfterValidator(check_finite), AfterValidator(check_size)]
Paths = Annotated[dict[Key, str], AfterValidator(check_size)]


class Strict(BaseModel):
    """A misspelt field is an error instead of being ignored."""

    model_config = ConfigDict(extra="forbid")


def example(**values: JsonValue) -> ConfigDict:
    """Returns the configuration of a model whose example in `/docs` has these values."""
    return ConfigDict(json_schema_extra={"example": values})


class NewProject(Strict):
    """A project to add or to find."""

    model_config = example(project_name="flowers", description="Iris flowers")

    project_name: Name
    description: Line | None = None


class NewModel(Strict):
    """A model to add to a project or to find there."""

    model_config = example(project_id=SOME_ID, model_name="iris", description="Three species")

    project_id: UUID
    model_name: Name
    description: Line | None = None


class NewExperiment(Strict):
    """One training run of a new version of a model."""

    model_config = example(
        model_id=SOME_ID,
        model_version_id="1",
        parameters={"C": 1.0, "kernel": "rbf"},
        evaluations={"accuracy": 0.93},
        artifact_file_paths={"onnx": "s3://models/iris/1/model.onnx"},
    )

    model_id: UUID
    model_version_id: Name
    parameters: Values = Field(default_factory=dict)
    training_dataset: Line | None = None
    validation_dataset: Line | None = None
    test_dataset: Line | None = None
    evaluations: Values = Field(default_factory=dict)
    artifact_file_paths: Paths = Field(default_factory=dict)
    artifact_sha256: Sha256 | None = None


class NewEvaluations(Strict):
    """Evaluations to add; existing keys are replaced."""

    model_config = example(evaluations={"accuracy": 0.93})

    evaluations: Values


class NewArtifactFilePaths(Strict):
    """File paths to add; existing keys are replaced."""

    model_config = example(artifact_file_paths={"onnx": "s3://models/iris/1/model.onnx"})

    artifact_file_paths: Paths


class Promotion(Strict):
    """The champion that the caller expects to replace; null means none."""

    model_config = example(expected_champion=SOME_ID)

    expected_champion: UUID | None


class Row(BaseModel):
    """A row as it is stored."""

    model_config = ConfigDict(from_attributes=True)


class ProjectRow(Row):
    """A purpose that models are trained for."""

    project_id: UUID
    project_name: str
    description: str | None
    created_datetime: datetime


class ModelRow(Row):
    """A model of a project; its versions are experiments."""

    model_id: UUID
    project_id: UUID
    model_name: str
    description: str | None
    created_datetime: datetime


class ExperimentRow(Row):
    """One training run of one version of a model."""

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
    """One page of the rows, oldest first, and the total number of rows."""

    total: int
    rows: list[Found]


class Refusal(BaseModel):
    """Why a request was refused."""

    detail: str | list[dict[str, Any]]


UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": Refusal, "description": "Overloaded or not ready: try again later"},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "Nothing has this id or name"},
}
CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": Refusal, "description": "It contradicts the stored state"},
}
INVALID: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The host name is not one of TRUSTED_HOSTS"},
    422: {"model": Refusal, "description": "The request is invalid"},
    **UNAVAILABLE,
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    403: {"model": Refusal, "description": "The page of another site may not write"},
    408: {"model": Refusal, "description": "The body did not arrive in time"},
    413: {"model": Refusal, "description": "The body is too large"},
    415: {"model": Refusal, "description": "The body is not JSON in UTF-8, or is not sent as it"},
    **INVALID,
}
