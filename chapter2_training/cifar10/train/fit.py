"""Trains the network on the images, and goes on from its last whole epoch after an interruption."""

import json
from pathlib import Path

import mlflow
import numpy as np
import torch

from .curves import draw_curves
from .learning import batches, epochs, load, make_deterministic, predict, score
from .nets import make_net
from .parameters import Parameters
from .step import CHECKPOINT, Inputs, StepError, bar, console, run


def fit(parameters: Parameters, inputs: Inputs, output: Path) -> dict[str, float]:
    """Writes weights.pt, the labels that it predicts for the test images, and the curves.

    Raises:
        StepError: there is no GPU, and one was asked for.
    """
    data = inputs["preprocess"]
    device = device_of(parameters.device)
    make_deterministic(parameters.threads)
    torch.manual_seed(parameters.seed)
    statistics = json.loads((data / "statistics.json").read_bytes())
    net = make_net(parameters.net, statistics["mean"], statistics["deviation"]).to(device)
    train, test = load(data / "train.bin"), load(data / "test.bin")
    mlflow.log_param("device_used", device.type)

    checkpoint = output / CHECKPOINT
    if checkpoint.is_file():
        console.print(f"fit: goes on from {checkpoint}")
    settings = {
        name: getattr(parameters, name)
        for name in ("epochs", "batch_size", "learning_rate", "seed")
    }
    history = []
    with bar() as progress:
        steps = len(batches(len(train[0]), parameters.batch_size))
        task = progress.add_task(f"fit: {parameters.net}", total=parameters.epochs * steps)
        passed = epochs(net, train, test, settings, checkpoint, lambda: progress.advance(task))
        for number, row in enumerate(passed, start=1):
            history.append(row)
            progress.update(task, completed=number * steps)
            mlflow.log_metrics(row, step=number)
            console.print(
                f"fit: epoch {number} of {parameters.epochs}:",
                ", ".join(f"{name} {value:.4f}" for name, value in row.items()),
            )

    net.cpu()
    torch.save(net.state_dict(), output / "weights.pt")
    np.save(output / "predicted.npy", predict(net, test[0]).argmax(1).numpy())
    (output / "history.json").write_text(json.dumps(history))
    draw_curves(history, parameters.net).savefig(output / "curves.png")
    mlflow.log_artifact(str(output / "curves.png"))
    return score(net, *test)


def device_of(name: str) -> torch.device:
    """Returns the device of a name; `auto` is a GPU where there is one.

    Raises:
        StepError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise StepError("there is no GPU that this build of PyTorch can use: use --device cpu")
    return torch.device(name)


if __name__ == "__main__":
    run("fit", __doc__, fit, resumes=True)
