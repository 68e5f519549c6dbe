# Copied from chapter4_serving_patterns/web_single_pattern/app/model.py
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

# A model that cannot predict two rows within this time is not served.
CHECK_SECONDS = 10.0


class ModelError(Exception):
    """The model directory does not hold the model that its metadata describes."""


class NoAnswerError(Exception):
    """The model has no finite answer to these rows."""


class Model:
    """A model that was checked against its metadata and is ready to predict."""

    def __init__(self, directory: Path, features: int) -> None:
        """Loads `model.onnx` and `metadata.json` from the directory, and predicts once.

        Raises:
            ModelError: a file is missing or unreadable, the two do not belong together, or the
                model does not return finite probabilities for rows of this many features.
        """
        try:
            self.metadata: dict[str, Any] = json.loads((directory / "metadata.json").read_bytes())
            content = (directory / self.metadata["file"]).read_bytes()
            digest = self.metadata["sha256"]
            self.labels: list[str] = self.metadata["labels"]
            self.sample: list[list[float]] = self.metadata["sample"]
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
            require(are_labels(self.labels), "labels is not a list of different texts")
            require(are_rows(self.sample, features), f"sample has no rows of {features} numbers")
            self._session = load(content)
            self.check_signature(features)
            self.check_predictions()
            self.metadata |= in_names_of_the_book(self.sample[0], self.run(self.sample[:1])[0])
        except ModelError as error:
            raise ModelError(f"{directory}: {error}") from error

    def check_signature(self, features: int) -> None:
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        described = [(each.name, each.type, each.shape) for each in [*inputs, *outputs]]
        found = [each for each in inputs if each.name == self._input]
        require(
            len(inputs) == 1 and len(found) == 1 and is_table(found[0], features),
            f"its only input has to be {self._input}, rows of {features} float32: {described}",
        )
        found = [each for each in outputs if each.name == self._output]
        require(
            len(found) == 1 and is_table(found[0], len(self.labels)),
            f"it has no output {self._output} of a float32 for each label: {described}",
        )

    def check_predictions(self) -> None:
        options = onnxruntime.RunOptions()
        timer = Timer(CHECK_SECONDS, setattr, (options, "terminate", True))
        timer.start()
        try:
            rows = [self.sample[0]] * 2
            probabilities = self.run(rows, options)
        except Exception as error:
            # ONNX Runtime raises a different class for each fault.
            raise ModelError(f"it cannot predict two rows: {error}") from error
        finally:
            timer.cancel()
        require(
            probabilities.shape == (2, len(self.labels)),
            f"it answers two rows with an array of the shape {probabilities.shape}",
        )
        require(is_finite(probabilities), f"its answer to the sample is not finite: {rows[0]}")

    def run(
        self, rows: list[list[float]], options: onnxruntime.RunOptions | None = None
    ) -> NDArray[np.float32]:
        """Returns the probabilities [rows, classes] of rows [rows, features], finite or not."""
        inputs = {self._input: np.asarray(rows, dtype=np.float32)}
        probabilities: NDArray[np.float32] = self._session.run([self._output], inputs, options)[0]
        return probabilities

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        """Returns the probabilities [rows, classes] of rows [rows, features], in one call.

        Raises:
            NoAnswerError: a probability is not finite.
        """
        probabilities = self.run(rows)
        if not is_finite(probabilities):
            raise NoAnswerError("the model has no finite answer to these numbers")
        return probabilities

    def predict_labels(self, rows: list[list[float]]) -> list[str]:
        """Returns the most probable label of each row.

        Raises:
            NoAnswerError: a probability is not finite.
        """
        return [self.labels[index] for index in self.predict(rows).argmax(axis=1)]


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


def in_names_of_the_book(row: list[float], prediction: NDArray[np.float32]) -> dict[str, Any]:
    """Returns the fields that `/metadata` has in the book: a row and its prediction."""
    return {
        "data_type": "float32",
        "data_structure": f"(1,{len(row)})",
        "data_sample": [row],
        "prediction_type": "float32",
        "prediction_structure": f"(1,{len(prediction)})",
        "prediction_sample": [prediction.tolist()],
    }


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ModelError(otherwise)


def are_labels(labels: object) -> bool:
    return (
        isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
        and len(set(labels)) == len(labels) > 0
    )


def are_rows(sample: object, features: int) -> bool:
    try:
        rows = np.asarray(sample, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return rows.ndim == 2 and rows.shape[1] == features and bool(np.isfinite(rows).all())


def is_table(tensor: onnxruntime.NodeArg, columns: int) -> bool:
    """Tells whether a tensor is any number of rows of float32 numbers."""
    return bool(
        tensor.type == "tensor(float)"
        and len(tensor.shape) == 2
        and not isinstance(tensor.shape[0], int)
        and tensor.shape[1] == columns
    )


def is_finite(probabilities: NDArray[np.float32]) -> bool:
    """Tells whether all are finite, by the sum of their squares: half the time of np.isfinite."""
    return math.isfinite(np.vdot(probabilities, probabilities))
