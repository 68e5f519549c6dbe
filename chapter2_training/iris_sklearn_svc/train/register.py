"""Registers the trained model in model_db, with its metrics, its digest and where its file is."""

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

PROJECT = "iris"
MODEL, METADATA = "model.onnx", "metadata.json"


class RegisterError(Exception):
    """The model is not registered."""


class Kept(NamedTuple):
    """A copy of a model and its metadata in a directory of its own, which no training writes."""

    directory: Path
    version: str
    metadata: dict[str, Any]
    # By the name of the file.
    sha256: dict[str, str]


def keep(models: Path) -> Kept:
    """Copies the model of the last training: the next one replaces it, and not the copy.

    Raises:
        RegisterError: there is no model, or another one than its metadata describe.
    """
    try:
        model, described = ((models / name).read_bytes() for name in (MODEL, METADATA))
        metadata: dict[str, Any] = json.loads(described)
        # Two trainings of one version are two models, and the digest tells them apart.
        version = f"{metadata['version']}.{metadata['sha256'][:12]}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegisterError(f"no trained model in {models}, run make train: {error!r}") from error
    sha256 = {
        name: hashlib.sha256(content).hexdigest()
        for name, content in ((MODEL, model), (METADATA, described))
    }
    if sha256[MODEL] != metadata["sha256"]:
        raise RegisterError(
            f"{models / MODEL} is not the model that {METADATA} beside it describes, run make "
            f"train: its SHA-256 is {sha256[MODEL]}, not {metadata['sha256']}"
        )
    directory = (models / version).absolute()
    try:
        directory.mkdir(exist_ok=True)
        # The model comes first: metadata that is there always describes a model that is there.
        write_whole(directory / MODEL, model)
        write_whole(directory / METADATA, described)
    except OSError as error:
        raise RegisterError(f"no copy can be kept in {directory}: {error.strerror}") from error
    return Kept(directory, version, metadata, sha256)


def register(client: httpx.Client, kept: Kept, uri: str, project: str) -> dict[str, Any]:
    """Adds a model to the registry unless it is there, and returns its experiment.

    A model that is there has the address `uri` from then on.

    Raises:
        RegisterError: the registry does not take it.
    """
    metadata = kept.metadata
    # Who loads by the address of the metadata checks them, and they hold the digest of the model.
    sha256 = kept.sha256[uri.rpartition("/")[2]]
    project_row = post(client, "projects", {"project_name": project})
    model_row = post(
        client,
        "models",
        {"project_id": project_row["project_id"], "model_name": metadata["name"]},
    )
    answer = client.post(
        "experiments",
        json={
            "model_id": model_row["model_id"],
            "model_version_id": kept.version,
            "parameters": metadata["parameters"],
            "training_dataset": f"sha256:{metadata['training_data_sha256']}",
            "evaluations": metadata["metrics"],
            "artifact_file_paths": {"onnx": uri},
            "artifact_sha256": sha256,
        },
    )
    if answer.status_code != 409:
        return accepted(answer)
    found = accepted(client.get(f"experiments/model-version-id/{kept.version}"))["rows"]
    known = next(row for row in found if row["model_id"] == model_row["model_id"])
    if known["artifact_sha256"] != sha256:
        raise RegisterError(
            f"version {kept.version} is registered with another SHA-256 than {uri} has: "
            f"{known['artifact_sha256']}, not {sha256}"
        )
    path = f"experiments/artifact-file-paths/{known['experiment_id']}"
    return post(client, path, {"artifact_file_paths": {"onnx": uri}})


def promote(client: httpx.Client, experiment: dict[str, Any], model: str, project: str) -> None:
    """Makes an experiment the champion of its model.

    Raises:
        RegisterError: somebody else has promoted another one meanwhile.
    """
    answer = client.get(f"models/champion/{model}", params={"project_name": project})
    champion = None if answer.status_code == 404 else accepted(answer)["experiment_id"]
    if champion != experiment["experiment_id"]:
        path = f"experiments/promote/{experiment['experiment_id']}"
        post(client, path, {"expected_champion": champion})


def post(client: httpx.Client, path: str, content: dict[str, Any]) -> dict[str, Any]:
    return accepted(client.post(path, json=content))


def accepted(answer: httpx.Response) -> dict[str, Any]:
    """Returns what the registry answers, unless it refuses."""
    if answer.is_error:
        raise RegisterError(f"{answer.url} answers {answer.status_code}: {answer.text[:500]}")
    content: dict[str, Any] = answer.json()
    return content


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.register", description=__doc__)
    parser.add_argument(
        "--url",
        default=os.environ.get("MODEL_DB_URL", "http://localhost:8000"),
        help="where model_db is; MODEL_DB_URL, or this machine",
    )
    parser.add_argument("--models", type=Path, default=Path(__file__).parents[1] / "models")
    parser.add_argument("--project", default=PROJECT)
    parser.add_argument(
        "--artifact-uri",
        metavar="URI",
        help="where others can read the file, such as a store; without it the file:// address of "
        "the copy that is kept in a directory of --models",
    )
    parser.add_argument("--promote", action="store_true", help="make it the champion of its model")
    arguments = parser.parse_args()
    uri = arguments.artifact_uri
    if uri is not None and uri.rpartition("/")[2] not in {MODEL, METADATA}:
        parser.error(f"--artifact-uri ends in /{MODEL} or /{METADATA}")
    try:
        kept = keep(arguments.models)
        uri = uri or (kept.directory / MODEL).as_uri()
        with httpx.Client(base_url=f"{arguments.url}/v0.1/api/", timeout=10) as client:
            experiment = register(client, kept, uri, arguments.project)
            if arguments.promote:
                promote(client, experiment, kept.metadata["name"], arguments.project)
    # An address that is none is no HTTPError.
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
