"""Trains the network, and resumes after the last complete epoch if it was interrupted."""

import json
from pathlib import Path

import numpy as np
import torch

from .learning import batches, epochs, load, make_deterministic, predict, score
from .nets import make_net, weights_of
from .parameters import Parameters
from .step import CHECKPOINT, EPOCHS, Found, Inputs, StepError, bar, console, run


def fit(parameters: Parameters, inputs: Inputs, output: Path) -> Found:
    """Writes the weights, the predicted labels of the test images, and one line per epoch.

    Raises:
        StepError: a GPU was requested, but there is none.
    """
    data = inputs["preprocess"]
    device = device_of(parameters.device)
    make_deterministic(parameters.threads)
    torch.manual_seed(parameters.seed)
    statistics = json.loads((data / "statistics.json").read_bytes())
    net = make_net(parameters.net, statistics["mean"], statistics["deviation"]).to(device)
    train, test = load(data / "train.bin"), load(data / "test.bin")

    checkpoint = output / CHECKPOINT
    if checkpoint.is_file():
        console.print(f"fit: resumes from {checkpoint}")
    settings = {
        name: getattr(parameters, name)
        for name in ("epochs", "batch_size", "learning_rate", "seed")
    }
    with bar() as progress, (output / EPOCHS).open("w") as file:
        steps = len(batches(len(train[0]), parameters.batch_size))
        task = progress.add_task(f"fit: {parameters.net}", total=parameters.epochs * steps)
        passed = epochs(net, train, test, settings, checkpoint, lambda: progress.advance(task))
        for number, row in enumerate(passed, start=1):
            progress.update(task, completed=number * steps)
            print(json.dumps(row), file=file, flush=True)
            console.print(
                f"fit: epoch {number} of {parameters.epochs}:",
                ", ".join(f"{name} {value:.4f}" for name, value in row.items()),
            )

    net.cpu()
    np.savez(output / "weights.npz", allow_pickle=False, **weights_of(net))
    np.save(output / "predicted.npy", predict(net, test[0]).argmax(1).numpy())
    return {**score(net, *test), "device_used": device.type}


def device_of(name: str) -> torch.device:
    """Returns the device of a name; `auto` is a GPU if there is one.

    Raises:
        StepError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise StepError("this build of PyTorch finds no GPU: use --device cpu")
    return torch.device(name)


if __name__ == "__main__":
    run("fit", __doc__, fit, resumes=True)
