"""Defines what a request, an answer and a refusal look like, and how large they may be."""

import json
import math
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

# Of the parameters, evaluations or paths of an experiment, as JSON. Parsed, empty lists in a list
# take sixteen times as much, and every list of the API is parsed and written anew.
MOST_BYTES = 8_192

Json = TypeVar("Json", bound=dict[str, Any])


def storable(value: JsonValue) -> JsonValue:
    """Refuses NaN and infinity, which are no JSON, at any depth.

    Raises:
        ValueError: a number is not finite.
    """
    match value:
        case dict():
            for item in value.values():
                storable(item)
        case list():
            for item in value:
                storable(item)
        case float() if not math.isfinite(value):
            raise ValueError("NaN and infinity are no finite numbers")
    return value


def small(values: Json) -> Json:
    """Refuses what would make lists slow.

    Raises:
        ValueError: it is larger than an experiment may hold.
    """
    if (size := len(json.dumps(values))) > MOST_BYTES:
        raise ValueError(f"{size} bytes of JSON are more than {MOST_BYTES}")
    return values


# A name is part of addresses such as /projects/name/iris.
Name = Annotated[str, Field(max_length=255, pattern=r"^\w([\w .+:@-]*\w)?$")]
# PostgreSQL stores no text with the character 0.
Line = Annotated[str, Field(max_length=1_000, pattern=r"^[^\x00]*$")]
Key = Annotated[str, Field(min_length=1, max_length=255)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Values = Annotated[
    dict[Key, JsonValue],
    AfterValidator(storable),
    AfterValidator(small),
]
Paths = Annotated[dict[Key, str], AfterValidator(small)]


class Strict(BaseModel):
    """A misspelt field is an error, and is never dropped without a word."""

    model_config = ConfigDict(extra="forbid")


class NewProject(Strict):
    """A project that may be there already."""

    project_name: Name
    description: Line | None = None


class NewModel(Strict):
    """A model that may be there already in its project."""

    project_id: UUID
    model_name: Name
    description: Line | None = None


class NewExperiment(Strict):
    """One training of a version that the model does not have yet."""

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
    """What is added to the evaluations of an experiment; a key that is there is replaced."""

    evaluations: Values


class NewArtifactFilePaths(Strict):
    """What is added to the paths of an experiment; a key that is there is replaced."""

    artifact_file_paths: Paths


class Promotion(Strict):
    """Which experiment the caller takes for the champion, null for none; another one is a 409."""

    expected_champion: UUID | None


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


class Refusal(BaseModel):
    """Why a request was not answered."""

    detail: str | list[dict[str, Any]]


UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": Refusal, "description": "Not now: try again"},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": Refusal, "description": "There is none of this id or name"},
}
CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": Refusal, "description": "It contradicts what is there"},
}
INVALID: dict[int | str, dict[str, Any]] = {
    422: {"model": Refusal, "description": "Not a valid request"},
    **UNAVAILABLE,
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Refusal, "description": "The body was not complete at its deadline"},
    413: {"model": Refusal, "description": "The body is too large"},
    **INVALID,
}
