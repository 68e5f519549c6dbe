"""Runs the pipeline in a container, and builds an image of the model, which is then scored."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

from rich.console import Console

CONSOLE = Console(soft_wrap=True, markup=False, highlight=False)
HERE = Path(__file__).parent
COMPOSE = ["docker", "compose", "--project-directory", str(HERE)]
SERVER_IMAGE = "ml-system-in-actions/cifar10-api:0.1.0"
MODEL_IMAGE = "ml-system-in-actions/cifar10-model"
# Time for the pipeline to end its step and record the failed run.
STOP_SECONDS = 30
TO_BE_SERVED = re.compile(r"build: (\S+) is to be served at ")
DOCKERFILE = """FROM {server}
COPY model.onnx metadata.json models/
LABEL model.name={name} model.sha256={sha256}
"""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    subprocess.run([*COMPOSE, "build", "--quiet", "train", "api"], check=True)
    # The pipeline reaches the server by its container name, so no port is published.
    pipeline, server = (f"cifar10-{role}-{os.getpid()}" for role in ("pipeline", "server"))
    options = ["--rm", "--no-deps", "-T", "--name", pipeline]
    # Docker can reorder stdout and stderr, so merge them in the container.
    in_order = ["sh", "-c", 'exec "$@" 2>&1', "sh"]
    train = ["python", "-m", "train", "--output", "/data/models", f"--server=http://{server}:8000"]
    image = ""
    with subprocess.Popen(
        [*COMPOSE, "run", *options, "train", *in_order, *train, *sys.argv[1:]],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            for line in process.stdout or ():
                CONSOLE.print(line, end="")
                if found := TO_BE_SERVED.match(line):
                    image = build_image(found[1])
                    network = ["--network", network_name(), "--name", server]
                    docker("run", "--detach", "--read-only", "--cap-drop=ALL", *network, image)
            process.wait()
        finally:
            # Leave nothing running, whatever happened.
            stop = ["stop", f"--time={STOP_SECONDS}", pipeline]
            for ending in (stop, ["rm", "--force", pipeline, server]):
                subprocess.run(["docker", *ending], capture_output=True, check=False)
    if process.returncode == 0:
        CONSOLE.print(f"the image {image} serves the model")
    return process.returncode


def build_image(directory: str) -> str:
    """Builds an image of the server and a model from the volume; returns its name."""
    tar = ["tar", "-c", "-C", directory, "model.onnx", "metadata.json"]
    packed = subprocess.run(
        [*COMPOSE, "run", "--rm", "--no-deps", "-T", "train", *tar],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    with tempfile.TemporaryDirectory() as context:
        with tarfile.open(fileobj=BytesIO(packed)) as archive:
            archive.extractall(context, filter="data")
        metadata = json.loads(Path(context, "metadata.json").read_bytes())
        about = {name: metadata[name] for name in ("name", "sha256")}
        Path(context, "Dockerfile").write_text(DOCKERFILE.format(server=SERVER_IMAGE, **about))
        image = f"{MODEL_IMAGE}:{about['sha256'][:12]}"
        docker("build", "--quiet", "--tag", image, context)
    return image


def network_name() -> str:
    """Returns the name of the network of the Compose project."""
    found = subprocess.run(
        [*COMPOSE, "config", "--format", "json"], stdout=subprocess.PIPE, check=True
    )
    name: str = json.loads(found.stdout)["networks"]["default"]["name"]
    return name


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    sys.exit(main())
