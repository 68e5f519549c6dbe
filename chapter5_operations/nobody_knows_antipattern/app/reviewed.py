"""Loads parameters only if somebody else than their author has reviewed exactly this file.

This shows the idea: whoever can write one file can write the other. What enforces it is a protected
branch, to which nobody can push and which takes a change only with the approval of another person.
"""

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError


class UnreviewedError(Exception):
    """The parameters are invalid, or nobody else has reviewed them."""


class Parameters(BaseModel):
    """How far beyond the trained range a value may be, as a share of the range."""

    model_config = ConfigDict(extra="forbid", strict=True)

    margin_share: float = Field(ge=0, le=1, allow_inf_nan=False)


class Review(BaseModel):
    """Who has written the file with this digest, and who has reviewed it."""

    sha256: str
    author: str
    reviewer: str


def load(directory: Path) -> Parameters:
    """Returns the parameters of `parameters.json`.

    Raises:
        UnreviewedError: a file is missing or invalid, or `reviews.json` has no review of this
            content by a member of the team who is not its author.
    """
    try:
        content = (directory / "parameters.json").read_bytes()
        parameters = Parameters.model_validate_json(content)
        reviews = read(directory / "reviews.json", list[Review])
        team = read(directory / "team.json", dict[str, list[str]])["members"]
    except (OSError, ValidationError, KeyError) as error:
        raise UnreviewedError(f"{directory}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    of_this = [review for review in reviews if review.sha256 == digest]
    if not any(one.reviewer in team and one.reviewer != one.author for one in of_this):
        raise UnreviewedError(
            f"nobody but its author has reviewed parameters.json with SHA-256 {digest}"
        )
    return parameters


def read(path: Path, kind: Any) -> Any:
    return TypeAdapter(kind).validate_json(path.read_bytes())
