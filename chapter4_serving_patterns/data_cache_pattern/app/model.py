"""Holds the ONNX Runtime session: a checked model file in, probabilities out."""

import hashlib
import json
import math
import os
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

# A model that cannot predict two pictures within this time is not served.
CHECK_SECONDS = 10.0


class ModelError(Exception):
    """The model directory does not hold the model that its metadata describes."""


class NoAnswerError(Exception):
    """The model has no finite answer to these pictures."""


class Model:
    """A model that was checked against its metadata and is ready to predict."""

    def __init__(self, directory: Path, side: int) -> None:
        """Loads `model.onnx` and `metadata.json` from the directory, and predicts once.

        Raises:
            ModelError: a file is missing or unreadable, the model is another than that of the
                metadata or of `preprocessing.json`, or it does not return finite probabilities for
                tensors [pictures, 3, side, side].
        """
        try:
            self.metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_bytes())
            content = (directory / self.metadata["file"]).read_bytes()
            digest = self.metadata["sha256"]
            preprocessing = json.loads((directory / "preprocessing.json").read_bytes())
            prepared_for = preprocessing["model_sha256"]
            self.labels: list[str] = self.metadata["labels"]
            self._input: str = self.metadata["input"]["name"]
            self._output: str = self.metadata["output"]["name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ModelError(
                f"no usable model in {directory} (run python -m train): {what}"
            ) from error
        try:
            found = hashlib.sha256(content).hexdigest()
            require(found == digest, "its SHA-256 does not match metadata.json")
            require(prepared_for == digest, "preprocessing.json was trained with another model")
            require(are_labels(self.labels), "labels is not a list of different texts")
            self._session = load(content)
            self.check_signature(side)
            self.check_predictions(side)
        except ModelError as error:
            raise ModelError(f"{directory}: {error}") from error

    def check_signature(self, side: int) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        described = [(each.name, each.type, each.shape) for each in [*inputs, *outputs]]
        found = [each for each in inputs if each.name == self._input]
        require(
            len(inputs) == 1 and len(found) == 1 and is_batch(found[0], [3, side, side]),
            f"its only input is not {self._input}, float32 [any, 3, {side}, {side}]: {described}",
        )
        found = [each for each in outputs if each.name == self._output]
        require(
            len(found) == 1 and is_batch(found[0], [len(self.labels)]),
            f"it has no output {self._output} of a float32 for each label: {described}",
        )

    def check_predictions(self, side: int) -> None:
        options = onnxruntime.RunOptions()
        timer = Timer(CHECK_SECONDS, setattr, (options, "terminate", True))
        timer.start()
        try:
            # To most models, zero is the mean of all pictures.
            probabilities = self.run(np.zeros((2, 3, side, side), np.float32), options)
        except Exception as error:
            # ONNX Runtime raises a different class for each fault.
            raise ModelError(f"it cannot predict two pictures: {error}") from error
        finally:
            timer.cancel()
        require(
            probabilities.shape == (2, len(self.labels)),
            f"it answers two pictures with an array of the shape {probabilities.shape}",
        )
        require(is_finite(probabilities), "its answer to grey pictures is not finite")

    def run(
        self, tensors: NDArray[np.float32], options: onnxruntime.RunOptions | None = None
    ) -> NDArray[np.float32]:
        """Returns the probabilities [pictures, classes], finite or not."""
        probabilities: NDArray[np.float32]
        [probabilities] = self._session.run([self._output], {self._input: tensors}, options)
        return probabilities

    def predict(self, tensors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the probabilities [pictures, classes] of prepared pictures, in one call.

        Raises:
            NoAnswerError: a probability is not finite.
        """
        probabilities = self.run(tensors)
        if not is_finite(probabilities):
            raise NoAnswerError("the model has no finite answer to these pictures")
        return probabilities


def load(content: bytes) -> onnxruntime.InferenceSession:
    """Returns the session of a model.

    Raises:
        ModelError: it is not a model, or not all of it is in the one file.
    """
    options = onnxruntime.SessionOptions()
    # One request at a time per process: more threads would only compete for the same core.
    options.intra_op_num_threads = 1
    # The digest does not cover weights in other files, so there is no folder to find them in.
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, "/dev/null")
    try:
        return onnxruntime.InferenceSession(content, options)
    except Exception as error:
        # ONNX Runtime raises a different class for each fault.
        raise ModelError(f"not a model that can be run from one file: {error}") from error


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ModelError(otherwise)


def are_labels(labels: object) -> bool:
    return (
        isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
        and len(set(labels)) == len(labels) > 0
    )


def is_batch(tensor: onnxruntime.NodeArg, shape: list[int]) -> bool:
    """Tells whether a tensor is any number of float32 tensors of this shape."""
    return bool(
        tensor.type == "tensor(float)"
        and tensor.shape[1:] == shape
        and not isinstance(tensor.shape[0], int)
    )


def is_finite(probabilities: NDArray[np.float32]) -> bool:
    """Tells whether all are finite, by the sum of their squares: half the time of np.isfinite."""
    return math.isfinite(np.vdot(probabilities, probabilities))
