"""Reads and writes tensors in the Open Inference Protocol: as bytes after the JSON, or in it."""

import math

import numpy as np
from numpy.typing import NDArray

from .model import Model
from .schema import InferRequest, InferResponse, Tensor

# The number of bytes of a body that are JSON; the rest are tensors.
HEADER_LENGTH = "Inference-Header-Content-Length"


class TensorError(Exception):
    """The request has no tensor that the model can predict."""


def header_length(text: str | None, content: bytes) -> int:
    """Returns how many bytes are JSON, all without the header field.

    Raises:
        TensorError: it is not a number of bytes that the body has.
    """
    if text is None:
        return len(content)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= len(content)):
        raise TensorError(f"{HEADER_LENGTH} is not a number of bytes of the body")
    return int(text)


def read(request: InferRequest, binary: bytes, model: Model, most: int) -> NDArray[np.float32]:
    """Returns the pictures of a request.

    Raises:
        TensorError: they are not one FP32 tensor of finite numbers in the shape of the model.
    """
    if len(request.inputs) != 1 or request.inputs[0].name != model.input:
        raise TensorError(f"the only input has to be {model.input}")
    tensor = request.inputs[0]
    if tensor.datatype != "FP32":
        raise TensorError(f"{model.input} has to be FP32")
    pictures, *shape = tensor.shape or [0]
    if shape != model.shape or not 1 <= pictures <= most:
        raise TensorError(f"the shape has to be [1 to {most}, {', '.join(map(str, model.shape))}]")
    count = math.prod(tensor.shape)
    values = numbers_of(tensor, binary)
    if len(values) != count:
        raise TensorError(f"the shape needs {count} numbers, not {len(values)}")
    if not math.isfinite(np.vdot(values, values)):
        raise TensorError("a number is NaN, infinite or far too large")
    return values.reshape(tensor.shape)


def numbers_of(tensor: Tensor, binary: bytes) -> NDArray[np.float32]:
    size = tensor.parameters.get("binary_data_size")
    if size is None and not binary:
        # A number above the highest float32 becomes infinity.
        with np.errstate(over="ignore"):
            return np.array(tensor.data, np.float32)
    if tensor.data or type(size) is not int:
        raise TensorError("a tensor has either data or binary_data_size")
    if size != len(binary) or size % 4:
        raise TensorError(f"binary_data_size is not that of the {len(binary)} bytes after the JSON")
    return np.frombuffer(binary, "<f4")


def write(
    request: InferRequest, model: Model, probabilities: NDArray[np.float32]
) -> tuple[bytes, dict[str, str]]:
    """Returns the body of a response and its headers.

    Raises:
        TensorError: the request wants another output.
    """
    is_binary = request.parameters.get("binary_data_output") is True
    for wanted in request.outputs:
        if wanted.name != model.output:
            raise TensorError(f"the only output is {model.output}")
        is_binary = wanted.parameters.get("binary_data", is_binary) is True
    tensor = Tensor(name=model.output, datatype="FP32", shape=list(probabilities.shape))
    binary = b""
    if is_binary:
        binary = probabilities.astype("<f4").tobytes()
        tensor.parameters = {"binary_data_size": len(binary)}
    else:
        tensor.data = probabilities.ravel().tolist()
    response = InferResponse(
        model_name=model.name, model_version=model.version, id=request.id, outputs=[tensor]
    )
    header = response.model_dump_json(exclude_defaults=True).encode()
    if not is_binary:
        return header, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return header + binary, headers
