# Copied from chapter4_serving_patterns/prep_pred_pattern/pred/model.py
"""Holds the ONNX Runtime session: a checked model file in, probabilities out."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime


class ModelError(Exception):
    """The model directory does not hold the model that its metadata describes."""


class NoAnswerError(Exception):
    """The model has no finite answer to these pictures."""


class Model:
    """A model that was checked against its metadata and is ready to predict."""

    def __init__(self, directory: Path) -> None:
        """Loads `model.onnx` and `metadata.json` from the directory, and predicts once.

        Raises:
            ModelError: a file is missing or unreadable, the two do not belong together, or the
                model does not return finite probabilities.
        """
        try:
            metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_bytes())
            content = (directory / metadata["file"]).read_bytes()
            self.name: str = metadata["name"]
            self.version: str = metadata["version"]
            self.pair: str = metadata["pair"]
            self.input: str = metadata["input"]["name"]
            self.output: str = metadata["output"]["name"]
            self.shape: list[int] = metadata["input"]["shape"][1:]
            self.labels: list[str] = metadata["labels"]
            if hashlib.sha256(content).hexdigest() != metadata["sha256"]:
                raise ModelError("its SHA-256 does not match metadata.json")
            self._session = load(content)
            self.check_predictions()
        except Exception as error:
            # ONNX Runtime raises a different class for each fault.
            what = f"{type(error).__name__}: {error}"
            raise ModelError(
                f"no usable model in {directory} (run python -m train): {what}"
            ) from error

    def check_predictions(self) -> None:
        """Predicts two empty pictures."""
        probabilities = self.predict(np.zeros((2, *self.shape), np.float32))
        if probabilities.shape != (2, len(self.labels)):
            raise ModelError(f"it answers two pictures with the shape {probabilities.shape}")

    def predict(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the probabilities [pictures, labels], in one call.

        Raises:
            NoAnswerError: a probability is not finite.
        """
        probabilities: NDArray[np.float32] = self._session.run(
            [self.output], {self.input: pictures}
        )[0]
        if not math.isfinite(np.vdot(probabilities, probabilities)):
            raise NoAnswerError("the model has no finite answer to these pictures")
        return probabilities


def load(content: bytes) -> onnxruntime.InferenceSession:
    """Returns the session of a model that is whole in one file."""
    options = onnxruntime.SessionOptions()
    # One request at a time per process: more threads would only compete for the same core.
    options.intra_op_num_threads = 1
    # The digest does not cover weights in other files, so there is no folder to find them in.
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, "/dev/null")
    return onnxruntime.InferenceSession(content, options)
