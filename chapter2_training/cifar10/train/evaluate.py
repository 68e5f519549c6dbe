"""Starts the built server and scores it over HTTP, image by image."""

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from .cifar import CLASSES, RECORD
from .parameters import PATTERN, Parameters
from .step import Found, Inputs, StepError, bar, run

READY_SECONDS = 120
RESPONSE_SECONDS = 30
LAST_LOG_BYTES = 2_000


def evaluate(parameters: Parameters, inputs: Inputs, output: Path) -> Found:
    """Writes scores.json and per_image.csv: prediction and latency of every test image.

    Raises:
        StepError: the server does not start, serves another model, or does not respond.
    """
    data, built = inputs["preprocess"], inputs["build"]
    metadata = json.loads((built / "metadata.json").read_bytes())
    rows = np.fromfile(data / "test.bin", np.uint8).reshape(-1, RECORD)
    with server(parameters.server, built, output / "server.log") as url:
        responses = list(predict_each(url, rows[:, 1:], metadata["sha256"]))
    probabilities = np.array([probabilities for probabilities, _ in responses])
    milliseconds = np.array([milliseconds for _, milliseconds in responses])
    trained = np.load(inputs["fit"] / "predicted.npy")
    scores = score(rows[:, 0], probabilities, trained, metadata["labels"])
    speed = {
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "images_per_second": len(rows) / float(milliseconds.sum()) * 1000,
    }
    content = json.dumps({**scores, **speed, "served_by": parameters.served_by}, indent=2)
    (output / "scores.json").write_text(content)
    with (output / "per_image.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "predicted", "probability", "milliseconds"])
        for number, (label, row, duration) in enumerate(
            zip(rows[:, 0], probabilities, milliseconds, strict=True)
        ):
            best = row.argmax()
            names = (metadata["labels"][index] for index in (label, best))
            table.writerow([number, *names, f"{row[best]:.6f}", f"{duration:.3f}"])
    counted = ("accuracy", "correct", "images", "different_from_training")
    return {name: scores[name] for name in counted} | speed


@contextmanager
def server(url: str, model: Path, log: Path) -> Iterator[str]:
    """Yields the URL of a ready server, which is started here if no URL is given.

    Raises:
        StepError: the server exits, or is not ready in time.
    """
    if url:
        wait_until_ready(url, None, log)
        yield url
        return
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(port)]
    environment = {**os.environ, "MODEL_DIRECTORY": str(model)}
    options = ["--no-access-log", "--timeout-graceful-shutdown", "5"]
    with log.open("wb") as lines:
        process = subprocess.Popen(
            [*command, *options], cwd=PATTERN, env=environment, stdout=lines, stderr=lines
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    """Returns as soon as the server is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while True:
        if process and process.poll() is not None:
            # The cut can split a character.
            last = log.read_bytes()[-LAST_LOG_BYTES:].decode(errors="replace")
            raise StepError(f"the server exited: {last}")
        try:
            response = httpx.get(f"{url}/ready", timeout=2, trust_env=False)
            if response.status_code == 200:
                return
            reason = f"it returned {response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = repr(error)
        if time.monotonic() > deadline:
            raise StepError(f"no server is ready at {url} after {READY_SECONDS} s: {reason}")
        time.sleep(0.05)


def predict_each(url: str, images: np.ndarray, sha256: str) -> Iterator[tuple[list[float], float]]:
    """Yields the predicted probabilities and the latency in milliseconds for each image."""
    with (
        # The server is on this machine, which is not behind the proxy.
        httpx.Client(base_url=url, timeout=RESPONSE_SECONDS, trust_env=False) as client,
        bar() as progress,
    ):
        served = exchange(client, "GET", "/metadata")["sha256"]
        if served != sha256:
            raise StepError(f"{url} serves the model {served[:12]}, not the one that was built")
        for image in progress.track(images, description="evaluate: calling the server"):
            body = json.dumps({"data": [image.tolist()]})
            began = time.perf_counter()
            predicted = exchange(client, "POST", "/predict", body)["prediction"][0]
            yield predicted, (time.perf_counter() - began) * 1000


def exchange(
    client: httpx.Client, method: str, path: str, body: str | None = None
) -> dict[str, Any]:
    """Sends a request and returns the JSON of the response."""
    try:
        response = client.request(method, path, content=body)
        response.raise_for_status()
        content: dict[str, Any] = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise StepError(f"{method} {path} failed: {error!r}") from error
    return content


def score(
    true: np.ndarray, probabilities: np.ndarray, trained: np.ndarray, names: list[str]
) -> dict[str, Any]:
    """Counts correct predictions, overall and per class, and those that differ from training.

    `true` and `trained` hold one label per image, `probabilities` one row [10] per image.
    """
    predicted = probabilities.argmax(1)
    matrix = np.zeros((CLASSES, CLASSES), int)
    np.add.at(matrix, (true, predicted), 1)
    right = np.diag(matrix)
    return {
        "images": len(true),
        "correct": int(right.sum()),
        "accuracy": float(right.sum() / len(true)),
        "different_from_training": int((predicted != trained).sum()),
        "per_class": {
            name: {
                "images": int(matrix[index].sum()),
                "recall": share(right[index], matrix[index].sum()),
                "precision": share(right[index], matrix[:, index].sum()),
            }
            for index, name in enumerate(names)
        },
        # A row for each true label, a column for each predicted one.
        "confusion_matrix": matrix.tolist(),
    }


def share(part: int, whole: int) -> float | None:
    """Returns the rounded share, or None if `whole` is 0."""
    return round(float(part / whole), 4) if whole else None


if __name__ == "__main__":
    run("evaluate", __doc__, evaluate)
