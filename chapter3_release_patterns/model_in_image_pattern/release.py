"""Trains, builds, checks and withdraws versions; without Docker, models/VERSION is the release."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAME = "ml-system-in-actions/model-in-image-pattern"
TRAINER = f"{NAME}-train:0.1.0"
COMPOSE = ["docker", "compose", "--project-directory", str(HERE)]
# The indexes and proxies that docker-compose.yml passes on; it has no service of the train stage.
FROM_THE_SHELL = [
    *(
        f"--secret=id={name.lower()},env={name}"
        for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    ),
    *(f"--build-arg={name}" for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")),
    *(f"--build-arg={name}" for name in ("http_proxy", "https_proxy", "no_proxy")),
]
# Compose adds its own labels to the images that it builds.
LABELS_OF_COMPOSE = "com.docker.compose."


class ReleaseError(Exception):
    """The operation was refused, and the version is unchanged."""


def train(run: str, version: str, arguments: list[str]) -> None:
    """Trains a version; an existing version with another model is an error."""
    command = ["python", "-m", "train", "--version", version, *arguments]
    if run == "local":
        subprocess.run([sys.executable, *command[1:]], cwd=HERE, check=True)
        return
    models = HERE / "models"
    try:
        models.mkdir(exist_ok=True)
    except OSError as error:
        reason = f"cannot create {models}: {error.strerror}; make its directory writable"
        raise ReleaseError(reason) from error
    subprocess.run(
        ["docker", "build", "--quiet", *FROM_THE_SHELL, "--target=train", f"--tag={TRAINER}", HERE],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    options = ["--rm", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}"]
    options += ["--volume", f"{models}:/service/models"]
    subprocess.run(["docker", "run", *options, TRAINER, *command], check=True)


def release(run: str, version: str, arguments: list[str]) -> None:
    """Trains a version and builds its image, once.

    Raises:
        ReleaseError: the image exists with different contents.
    """
    train(run, version, arguments)
    if run == "local":
        return
    image = image_of(version)
    # Built under a temporary tag, so that the version's tag never points to an unchecked image.
    candidate = f"{image}-candidate"
    try:
        build(version, candidate)
        if not exists(image):
            subprocess.run(["docker", "tag", candidate, image], check=True)
        elif contents(image) != contents(candidate):
            raise ReleaseError(
                f"{image} already exists with different contents: choose another VERSION"
            )
    finally:
        subprocess.run(["docker", "image", "rm", candidate], capture_output=True, check=False)


def build(version: str, tag: str) -> None:
    """Builds the image of the service `api` with the model of a version."""
    metadata = json.loads((HERE / "models" / version / "metadata.json").read_bytes())
    subprocess.run(
        [*COMPOSE, "--file", str(HERE / "docker-compose.yml"), "--file", "-", "build", "--quiet"],
        input=f"services: {{api: {{image: {tag}}}}}",
        text=True,
        env=os.environ | {"MODEL_VERSION": version, "MODEL_SHA256": metadata["sha256"]},
        check=True,
    )


def contents(image: str) -> dict[str, Any]:
    """Returns what distinguishes images, without the time and the tool of the build."""
    described: dict[str, Any] = json.loads(
        subprocess.run(
            ["docker", "image", "inspect", image], stdout=subprocess.PIPE, check=True
        ).stdout
    )[0]
    config = described["Config"]
    labels = (config["Labels"] or {}).items()
    config["Labels"] = {k: v for k, v in labels if not k.startswith(LABELS_OF_COMPOSE)}
    return {key: described[key] for key in ("Os", "Architecture", "RootFS", "Config")}


def exists(image: str) -> bool:
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    return found.returncode == 0


def image_of(version: str) -> str:
    return f"{NAME}-api:{version}"


def check(run: str, version: str, _: list[str]) -> None:
    """Loads and runs the model of a version.

    Raises:
        ReleaseError: the version cannot serve.
    """
    program = ["python", "-m", "app.check"]
    options = ["--rm", "--pull", "never", "--network", "none", "--read-only"]
    command = ["docker", "run", *options, image_of(version), *program]
    environment = dict(os.environ)
    if run == "local":
        command = [sys.executable, *program[1:]]
        environment["MODEL_DIRECTORY"] = f"models/{version}"
    if subprocess.run(command, cwd=HERE, env=environment, check=False).returncode:
        raise ReleaseError(f"{version} cannot serve, so the running version was not stopped")


def withdraw(run: str, version: str, _: list[str]) -> None:
    """Deletes the image and the directory of a version.

    Raises:
        ReleaseError: the version is running.
    """
    if run == "docker":
        subprocess.run(["docker", "image", "rm", image_of(version)], check=True)
    elif runs(version):
        raise ReleaseError(f"{version} is running: roll out another version first")
    shutil.rmtree(HERE / "models" / version, ignore_errors=True)


def runs(version: str) -> bool:
    """Tells whether a version is running without Docker."""
    state = HERE / ".local"
    if not (state / "supervisord.pid").exists():
        return False
    command = (state / "services/api.sh").read_text("utf-8")
    return re.search(rf"models/{re.escape(version)}(?![\w.])", command) is not None


VERBS = {"train": train, "release": release, "check": check, "withdraw": withdraw}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices=("docker", "local"), required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("verb", choices=VERBS)
    arguments, of_training = parser.parse_known_args()
    # Lets `finally` remove the temporary tag.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        VERBS[arguments.verb](arguments.run, arguments.version, of_training)
    except ReleaseError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        # The command has printed the reason.
        sys.exit(error.returncode)


if __name__ == "__main__":
    main()
