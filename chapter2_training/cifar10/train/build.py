"""Writes the trained network in the form that a server loads: model.onnx and metadata.json."""

import json
from pathlib import Path

import numpy as np

from .artifact import write_artifact
from .cifar import CLASSES, PIXELS, RECORD
from .onnx_graph import INPUT, OUTPUT, export
from .parameters import Parameters
from .step import EPOCHS, STEPS, Found, Inputs, file_digest, run

VERSION = "1"


def build(parameters: Parameters, inputs: Inputs, output: Path) -> Found:
    """Writes the model and its metadata, and returns its size and the digests."""
    data, fitted = inputs["preprocess"], inputs["fit"]
    statistics = json.loads((data / "statistics.json").read_bytes())
    epochs = (fitted / EPOCHS).read_text().splitlines()
    with np.load(fitted / "weights.npz") as weights:
        model = export(parameters.net, weights)
    with (data / "test.bin").open("rb") as file:
        sample = file.read(RECORD)[1:]
    metadata = {
        "name": f"cifar10_{parameters.net}",
        "version": VERSION,
        "input": {"name": INPUT, "shape": [None, PIXELS]},
        "output": {"name": OUTPUT, "shape": [None, CLASSES]},
        "labels": statistics["labels"],
        "parameters": {name: getattr(parameters, name) for name in STEPS["build"].parameters},
        "normalisation": {name: statistics[name] for name in ("mean", "deviation")},
        "metrics": json.loads(epochs[-1]) if epochs else {},
        "training_data_sha256": file_digest(data / "train.bin"),
        "sample": [list(sample)],
    }
    written = write_artifact(output, model, metadata)
    return {
        "model_bytes": len(model),
        "model_sha256": written["sha256"],
        "training_data_sha256": written["training_data_sha256"],
    }


if __name__ == "__main__":
    run("build", __doc__, build)
