"""The key and the bytes under which Redis keeps a prepared picture."""

import json
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import pixels
from .pixels import Preprocessing


def digest_of(preprocessing: Preprocessing) -> str:
    """Names a way to prepare pictures: its code and its numbers, but not the model."""
    code = Path(pixels.__file__).read_bytes()
    return blake2b(code + json.dumps(asdict(preprocessing)).encode(), digest_size=12).hexdigest()


def key_of(picture_id: str, version: int | None, digest: str) -> bytes:
    """Returns the key of a picture's version; without a version, all versions have the same."""
    # No ID contains a colon.
    return f"{digest}:{picture_id}{'' if version is None else f':{version}'}".encode()


def value_bytes(side: int) -> int:
    """Returns how many bytes a prepared picture has: three colours of float32 numbers."""
    return 4 * 3 * side * side


def encode(tensor: NDArray[np.float32]) -> bytes:
    """Returns the numbers as they are in memory, a fifth of what they take as JSON."""
    return tensor.astype("<f4", copy=False).tobytes()


def decode(values: list[bytes], side: int) -> NDArray[np.float32]:
    """Returns the tensors [pictures, 3, side, side] that the values hold.

    Raises:
        ValueError: a value has another length.
    """
    return np.frombuffer(b"".join(values), "<f4").reshape(len(values), 3, side, side)
