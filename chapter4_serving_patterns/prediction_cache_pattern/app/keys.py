"""The key of a prediction: the model's version, and the numbers that the model sees."""

from hashlib import blake2b

import numpy as np


def key_of(row: list[float], model: str) -> bytes:
    """Returns the key under which the prediction of a row is stored, for a model's SHA-256.

    Rows have the same key only if they are the same to the model, which computes with float32.
    """
    # Adding zero turns -0.0 into 0.0, which has other bytes.
    values = np.asarray(row, "<f4") + np.float32(0)
    # Half of the SHA-256 is enough to tell models apart, and leaves room for more predictions.
    return f"{model[:32]}:".encode() + blake2b(values.tobytes(), digest_size=20).digest()
