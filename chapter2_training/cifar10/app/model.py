# Copied from chapter4_serving_patterns/web_single_pattern/app/model.py
"""Holds the ONNX Runtime session: a checked model file in, probabilities out."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class ModelError(Exception):
    """The model directory does not hold the model that its metadata describes."""


class Model:
    """A model that has been checked against its metadata and is ready to predict."""

    def __init__(self, directory: Path, features: int) -> None:
        """Loads `model.onnx` and `metadata.json` from the directory.

        Raises:
            ModelError: a file is missing or unreadable, the two do not belong together, or the
                model does not take rows of this many features.
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
            raise ModelError(
                f"no usable model in {directory} (run python -m train): {error!r}"
            ) from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise ModelError(f"{directory}: the model's SHA-256 is not the one in metadata.json")

        options = onnxruntime.SessionOptions()
        # One request at a time per process: more threads would only fight over the same core.
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(content, options)
        except Exception as error:
            # ONNX Runtime raises a class of its own for each way in which a file can be wrong.
            raise ModelError(f"{directory}: not a model that can be run: {error}") from error
        inputs = {tensor.name: tensor.shape for tensor in self._session.get_inputs()}
        outputs = {tensor.name: tensor.shape for tensor in self._session.get_outputs()}
        if self._input not in inputs or inputs[self._input][-1] != features:
            raise ModelError(
                f"{directory}: no input {self._input} of {features} features: {inputs}"
            )
        if self._output not in outputs or outputs[self._output][-1] != len(self.labels):
            raise ModelError(
                f"{directory}: no output {self._output} of a number a label: {outputs}"
            )

    def predict(self, rows: list[list[float]]) -> NDArray[np.float32]:
        """Returns the probabilities [rows, classes] of rows [rows, features], in one call."""
        inputs = {self._input: np.asarray(rows, dtype=np.float32)}
        probabilities: NDArray[np.float32] = self._session.run([self._output], inputs)[0]
        return probabilities

    def predict_labels(self, rows: list[list[float]]) -> list[str]:
        """Returns the most probable label of each row."""
        return [self.labels[index] for index in self.predict(rows).argmax(axis=1)]
