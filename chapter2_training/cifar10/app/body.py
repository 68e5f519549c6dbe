# Copied from chapter4_serving_patterns/web_single_pattern/app/body.py
"""Reads the body of a prediction request, and says what is wrong with one that is not valid."""

from typing import Annotated, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .row import FEATURES, HIGHEST, LOWEST
from .settings import Settings

# Strict, because otherwise `true` and "1.5" are numbers.
Feature = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=LOWEST, le=HIGHEST)]
Row = Annotated[list[Feature], Field(min_length=FEATURES, max_length=FEATURES)]


class PredictRequest(BaseModel):
    """Rows of numbers; `/metadata` names the features in their order."""

    model_config = ConfigDict(extra="forbid")

    data: list[Row] = Field(min_length=1, max_length=Settings().max_rows)


class Refusal(BaseModel):
    """Why a request was not answered."""

    detail: str | list[dict[str, Any]]


REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": PredictRequest.model_json_schema()}},
    }
}
UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"model": Refusal, "description": "Not now: try again"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    408: {"model": Refusal, "description": "The body was not complete at its deadline"},
    413: {"model": Refusal, "description": "The body is too large"},
    422: {"model": Refusal, "description": "Not a valid request"},
    **UNAVAILABLE,
}


async def rows_of(request: Request) -> list[list[float]]:
    """Parses and checks the body in one step, without FastAPI's detour by Python objects.

    Raises:
        RequestValidationError: the body is not a PredictRequest.
    """
    # The guard has read the body already and passes it on in one message.
    body: bytes = (await request.receive())["body"]
    try:
        return PredictRequest.model_validate_json(body).data
    except ValidationError as error:
        reasons = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(reasons) from error


async def refuse_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    """Says what is wrong, in a few short lines; FastAPI's own answer echoes the whole input."""
    reasons = [
        {"loc": [str(part)[:50] for part in reason["loc"]], "msg": reason["msg"][:200]}
        for reason in error.errors()[:10]
    ]
    return JSONResponse({"detail": reasons}, 422)
