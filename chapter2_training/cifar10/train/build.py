"""Writes the trained network as what a server serves: model.onnx and metadata.json."""

import json
from pathlib import Path

import torch

from .artifact import write_artifact
from .cifar import CLASSES, PIXELS, RECORD
from .curves import draw_curves
from .nets import make_net
from .onnx_graph import INPUT, OUTPUT, export
from .parameters import Parameters
from .step import STEPS, Inputs, file_digest, run
from .tracking import record

VERSION = "1"


def build(parameters: Parameters, inputs: Inputs, output: Path) -> dict[str, float]:
    """Writes the model with its metadata, and returns the size of the model."""
    data, fitted = inputs["preprocess"], inputs["fit"]
    statistics = json.loads((data / "statistics.json").read_bytes())
    history = json.loads((fitted / "history.json").read_bytes())
    net = make_net(parameters.net, statistics["mean"], statistics["deviation"])
    net.load_state_dict(torch.load(fitted / "weights.pt", weights_only=True))
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
        "metrics": history[-1] if history else {},
        "training_data_sha256": file_digest(data / "train.bin"),
        "sample": [list(sample)],
    }
    written = write_artifact(output, export(net.eval()), metadata)
    model = output / written["file"]
    record(written, model, {"curves.png": draw_curves(history, parameters.net)})
    return {"model_bytes": model.stat().st_size}


if __name__ == "__main__":
    run("build", __doc__, build)
