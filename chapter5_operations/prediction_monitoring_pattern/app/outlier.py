# Copied from chapter5_operations/prediction_log_pattern/app/outlier.py
"""Scores how usual a row is, with a one-class model."""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .model import ModelError, NoAnswerError, is_finite, load, require


class OutlierModel:
    """A model whose scores are the lower the more unusual a row is."""

    def __init__(self, directory: Path, sample: list[list[float]]) -> None:
        """Loads the model and scores the sample; raises a ModelError if it cannot."""
        try:
            metadata = json.loads((directory / "metadata.json").read_bytes())
            content = (directory / metadata["file"]).read_bytes()
            is_same = hashlib.sha256(content).hexdigest() == metadata["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"no usable model in {directory} (run python -m train)") from error
        require(is_same, f"{directory}: its SHA-256 does not match metadata.json")
        self._session = load(content)
        try:
            self.score(sample)
        except Exception as error:
            # ONNX Runtime raises a different class for each fault.
            raise ModelError(f"{directory}: it cannot score the sample: {error}") from error

    def score(self, rows: list[list[float]]) -> NDArray[np.float32]:
        """Returns the score of each row; raises a NoAnswerError if one is not finite."""
        inputs = {"X": np.asarray(rows, np.float32)}
        scores: NDArray[np.float32] = self._session.run(["scores"], inputs)[0][:, 0]
        if not is_finite(scores):
            raise NoAnswerError("the outlier model has no finite answer to these numbers")
        return scores
