"""Defines the JSON of the Open Inference Protocol, version 2."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field

Parameters = dict[str, bool | int | float | str]
# Strict: otherwise Pydantic accepts `true` and "1.5" as numbers.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Size = Annotated[int, Field(strict=True, ge=0, le=2**31)]


class Tensor(BaseModel):
    """A tensor: its numbers in order, or else `binary_data_size` bytes after the JSON."""

    model_config = ConfigDict(extra="forbid")

    name: str
    datatype: str
    shape: list[Size] = Field(max_length=8)
    data: Annotated[list[Number], FailFast()] = []
    parameters: Parameters = {}


class RequestedOutput(BaseModel):
    """An output that the caller wants; with `binary_data`, its bytes follow the JSON."""

    model_config = ConfigDict(extra="forbid")

    name: str
    parameters: Parameters = {}


class InferRequest(BaseModel):
    """Tensors to predict; the parameter `pair` says what the preprocessing was trained with."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "inputs": [{"name": "pictures", "datatype": "FP32", "shape": [1, 3, 224, 224]}]
            }
        },
    )

    id: str = Field(default="", max_length=200)
    parameters: Parameters = {}
    inputs: list[Tensor] = Field(min_length=1, max_length=16)
    outputs: list[RequestedOutput] = Field(default=[], max_length=16)


class InferResponse(BaseModel):
    """What the model computes."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[Tensor]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """The inputs and outputs of a model; -1 is any size. `pair` is in the parameters."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str]


class Refusal(BaseModel):
    """Why a request was rejected."""

    error: str


UNAVAILABLE: dict[int | str, dict[str, Any]] = {
    503: {"description": "Overloaded or not ready: try again later"},
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The request is invalid, or of another pair"},
    404: {"model": Refusal, "description": "There is no such model"},
    408: {"description": "The body did not arrive in time"},
    413: {"description": "The body is too large"},
    415: {"model": Refusal, "description": "The JSON is not in UTF-8"},
    **UNAVAILABLE,
}
