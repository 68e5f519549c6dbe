"""Reads the body of a request, and says what is wrong with one that is not valid."""

import json
import math
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    WithJsonSchema,
)

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
    # The schema of any JSON would refer to itself, which the description of a body cannot hold.
    WithJsonSchema({"type": "object", "propertyNames": {"minLength": 1, "maxLength": 255}}),
]
Paths = Annotated[dict[Key, str], AfterValidator(small)]


class Body(BaseModel):
    """A misspelt field is an error, and never left out in silence."""

    model_config = ConfigDict(extra="forbid")


class NewProject(Body):
    """A project that may be there already."""

    project_name: Name
    description: Line | None = None


class NewModel(Body):
    """A model that may be there already in its project."""

    project_id: UUID
    model_name: Name
    description: Line | None = None


class NewExperiment(Body):
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


class NewEvaluations(Body):
    """What is added to the evaluations of an experiment; a key that is there is replaced."""

    evaluations: Values


class NewArtifactFilePaths(Body):
    """What is added to the paths of an experiment; a key that is there is replaced."""

    artifact_file_paths: Paths


class Promotion(Body):
    """Which experiment the caller takes for the champion, null for none; another one is a 409."""

    expected_champion: UUID | None


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

Read = TypeVar("Read", bound=Body)


def schema_of(body: type[Body]) -> dict[str, Any]:
    """Returns what the description of the interface says of a body."""
    content = {"application/json": {"schema": body.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def body_of(body: type[Read]) -> Callable[[Request], Awaitable[Read]]:
    """Returns a dependency that parses and checks a body in one step.

    FastAPI's own detour by Python objects lets NaN through, and answers 500 when it echoes it.
    """

    async def read(request: Request) -> Read:
        # The guard has read the body already and passes it on in one message.
        content: bytes = (await request.receive())["body"]
        try:
            return body.model_validate_json(content)
        except ValidationError as error:
            reasons = error.errors(include_url=False, include_context=False, include_input=False)
            raise RequestValidationError(reasons) from error

    return read


async def refuse_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Says what is wrong, in a few short lines; FastAPI's own answer echoes the whole input."""
    reasons = [
        {"loc": [str(part)[:50] for part in reason["loc"]], "msg": reason["msg"][:200]}
        for reason in error.errors()[:10]
    ]
    return JSONResponse({"detail": reasons}, 422)
