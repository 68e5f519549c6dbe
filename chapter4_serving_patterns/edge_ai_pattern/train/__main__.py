"""Trains the models, and writes their signed releases into models/, from where they are published.

Release 1 is a logistic regression, release 2 a neural network, release 3 a mistake that is signed,
and release 4 the model of release 1 again.
"""

import json
import os
from pathlib import Path

# Set before the imports: the threads of BLAS wait for each other on small batches.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from rich.console import Console

from .artifact import command_line, digest, write_whole, writing_to
from .digits import load
from .model import accuracy_of, export, fit_network, fit_regression, quantise
from .release import NAME, describe, new_key, payload_of, public_half, publish, sha256

GOLDEN_ROWS = 20


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    x_train, y_train, x_test, y_test = load()
    regression, network = fit_regression(x_train, y_train), fit_network(x_train, y_train)
    full = export(network)
    models = {1: export(regression), 2: quantise(full)}
    # Somebody has exported the network without its scaler.
    models |= {3: quantise(export(network[-1:])), 4: models[1]}
    accuracies = {1: accuracy_of(regression, x_test, y_test)}
    accuracies |= dict.fromkeys((2, 3), accuracy_of(network, x_test, y_test)) | {4: accuracies[1]}
    golden: list[list[float]] = x_test[:GOLDEN_ROWS].tolist()
    key = new_key()
    with writing_to(output):
        for version, model in models.items():
            metadata = describe(model, accuracies[version], golden[:1])
            payload = payload_of(version, model, metadata, golden)
            if version == 3:
                payload["golden"] = payload_of(2, models[2], metadata, golden)["golden"]
            publish(output / "releases", payload, model, metadata, key)
        # What the releases are measured with, and is not published.
        write_whole(output / "full.onnx", full)
        with (output / "held_out.npz").open("wb") as file:
            np.savez(file, x=x_test, y=y_test)
        write_whole(output / "public_key", public_half(key).encode())
        summary = {
            "name": NAME,
            "releases": {version: sha256(model) for version, model in models.items()},
            "metrics": {"accuracy": accuracies[2]},
            "training_data_sha256": digest(x_train, np.asarray(y_train)),
        }
        write_whole(output / "metadata.json", json.dumps(summary, indent=2).encode())
    Console(soft_wrap=True, highlight=False).print(
        f"releases 1 to {len(models)} of {NAME} are in {output}\n"
        f"accuracy {accuracies[1]:.4f} (release 1), {accuracies[2]:.4f} (release 2), "
        f"{len(models[2])} bytes of {len(full)}"
    )


if __name__ == "__main__":
    main()
