# Copied from chapter2_training/iris_sklearn_svc/train/register.py with "iris"->"cifar10"
"""Registers the trained model in model_db with its metrics and its address and digest."""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from rich.console import Console

from .artifact import write_whole

PROJECT = "cifar10"
MODEL, METADATA = "model.onnx", "metadata.json"


class RegisterError(Exception):
    """The model cannot be registered."""


class Kept(NamedTuple):
    """A copy of a model and its metadata in its own directory, which training never overwrites."""

    directory: Path
    version: str
    metadata: dict[str, Any]
    # The digest of the metadata, which contain that of the model, so it covers both files.
    sha256: str


def keep(models: Path) -> Kept:
    """Copies the latest model, so that the next training does not overwrite it.

    Raises:
        RegisterError: there is no model, or it does not match its metadata.
    """
    try:
        model, described = ((models / name).read_bytes() for name in (MODEL, METADATA))
        metadata: dict[str, Any] = json.loads(described)
        expected = metadata["sha256"]
        sha256 = hashlib.sha256(described).hexdigest()
        # Two trainings of one version can give different models; the digest tells them apart.
        version = f"{metadata['version']}.{sha256[:12]}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegisterError(f"no trained model in {models}, run make train: {error!r}") from error
    if (found := hashlib.sha256(model).hexdigest()) != expected:
        raise RegisterError(
            f"{models / MODEL} does not match {METADATA}, run make train: "
            f"its SHA-256 is {found}, not {expected}"
        )
    directory = (models / version).absolute()
    try:
        directory.mkdir(exist_ok=True)
        # The model comes first, so the metadata never describes a missing file.
        write_whole(directory / MODEL, model)
        write_whole(directory / METADATA, described)
    except OSError as error:
        raise RegisterError(f"cannot copy the model to {directory}: {error.strerror}") from error
    return Kept(directory, version, metadata, sha256)


def check_registry(client: httpx.Client, url: str) -> None:
    """Checks that the service at the URL is a registry, and not, say, another pattern.

    Raises:
        RegisterError: it is not; the message says what was found.
    """
    response = client.get("projects/all", params={"limit": 1})
    is_elsewhere = response.status_code in (404, 405) or response.is_redirect
    if not (is_elsewhere or (response.is_success and '"rows"' not in response.text)):
        return
    description = client.get(f"{url}/openapi.json")
    try:
        found = f"that is {description.json()['info']['title']}"
    except (ValueError, KeyError, TypeError):
        found = f"{response.url} returned {response.status_code}: {response.text[:500]}"
    raise RegisterError(f"no model_db at {url}, set MODEL_DB_URL to its address: {found}")


def register(client: httpx.Client, kept: Kept, uri: str, project: str) -> dict[str, Any]:
    """Adds the model to the registry and returns its experiment.

    If the model is already registered, its address becomes `uri`.

    Raises:
        RegisterError: the registry rejects it.
    """
    metadata = kept.metadata
    project_row = post(client, "projects", {"project_name": project})
    model_row = post(
        client,
        "models",
        {"project_id": project_row["project_id"], "model_name": metadata["name"]},
    )
    response = client.post(
        "experiments",
        json={
            "model_id": model_row["model_id"],
            "model_version_id": kept.version,
            "parameters": metadata["parameters"],
            "training_dataset": f"sha256:{metadata['training_data_sha256']}",
            "evaluations": metadata["metrics"],
            "artifact_file_paths": {"onnx": uri},
            "artifact_sha256": kept.sha256,
        },
    )
    if response.status_code != 409:
        return accepted(response)
    found = accepted(client.get(f"experiments/model-version-id/{kept.version}"))["rows"]
    known = next(row for row in found if row["model_id"] == model_row["model_id"])
    if known["artifact_sha256"] != kept.sha256:
        raise RegisterError(
            f"version {kept.version} is already registered with a different SHA-256: "
            f"{known['artifact_sha256']}, not {kept.sha256}"
        )
    path = f"experiments/artifact-file-paths/{known['experiment_id']}"
    return post(client, path, {"artifact_file_paths": {"onnx": uri}})


def promote(client: httpx.Client, experiment: dict[str, Any], model: str, project: str) -> None:
    """Makes the experiment the champion of its model.

    Raises:
        RegisterError: another one was promoted in the meantime.
    """
    response = client.get(f"models/champion/{model}", params={"project_name": project})
    champion = None if response.status_code == 404 else accepted(response)["experiment_id"]
    if champion != experiment["experiment_id"]:
        path = f"experiments/promote/{experiment['experiment_id']}"
        post(client, path, {"expected_champion": champion})


def post(client: httpx.Client, path: str, content: dict[str, Any]) -> dict[str, Any]:
    return accepted(client.post(path, json=content))


def accepted(response: httpx.Response) -> dict[str, Any]:
    """Returns the body of a successful response."""
    if response.is_error:
        raise RegisterError(
            f"{response.url} returned {response.status_code}: {response.text[:500]}"
        )
    content: dict[str, Any] = response.json()
    return content


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.register", description=__doc__)
    parser.add_argument(
        "--url",
        default=os.environ.get("MODEL_DB_URL", "http://localhost:8000"),
        help="the URL of model_db (default: MODEL_DB_URL, or this machine)",
    )
    parser.add_argument("--models", type=Path, default=Path(__file__).parents[1] / "models")
    parser.add_argument("--project", default=PROJECT)
    parser.add_argument(
        "--artifact-uri",
        metavar="URI",
        help=f"the address where others can read {METADATA} and the model next to it, such as an "
        "object store (default: the file:// address of the copy in a directory of --models)",
    )
    parser.add_argument("--promote", action="store_true", help="make it the champion of its model")
    arguments = parser.parse_args()
    uri = arguments.artifact_uri
    if uri is not None and not uri.endswith(f"/{METADATA}"):
        parser.error(f"--artifact-uri must end in /{METADATA}")
    try:
        kept = keep(arguments.models)
        uri = uri or (kept.directory / METADATA).as_uri()
        with httpx.Client(base_url=f"{arguments.url}/v0.1/api/", timeout=10) as client:
            check_registry(client, arguments.url)
            experiment = register(client, kept, uri, arguments.project)
            if arguments.promote:
                promote(client, experiment, kept.metadata["name"], arguments.project)
    # A malformed URL raises InvalidURL, which is not an HTTPError.
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        sys.exit(f"error: no model_db at {arguments.url}, run make up in model_db: {error}")
    except RegisterError as error:
        sys.exit(f"error: {error}")
    state = "the champion" if arguments.promote else "registered"
    Console(soft_wrap=True, highlight=False).print(
        f"{kept.metadata['name']} {kept.version} is {state} at {arguments.url}"
    )


if __name__ == "__main__":
    main()
