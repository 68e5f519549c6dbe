# Copied from chapter2_training/iris_sklearn_svc/train/register.py with "iris"->"cifar10"
"""Registers the trained model in model_db, with its metrics, its digest and where its file is."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

PROJECT = "cifar10"


class RegisterError(Exception):
    """The model is not registered."""


def read_metadata(models: Path) -> dict[str, Any]:
    """Returns what a directory of `python -m train` says of its model.

    Raises:
        RegisterError: there is no model.
    """
    try:
        metadata: dict[str, Any] = json.loads((models / "metadata.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RegisterError(f"no trained model in {models}, run make train: {error}") from error
    return metadata


def register(
    client: httpx.Client, metadata: dict[str, Any], models: Path, project: str
) -> dict[str, Any]:
    """Adds a model to the registry unless it is there, and returns its experiment.

    Raises:
        RegisterError: the registry does not take it.
    """
    project_row = post(client, "projects", {"project_name": project})
    model_row = post(
        client,
        "models",
        {"project_id": project_row["project_id"], "model_name": metadata["name"]},
    )
    # Two trainings of one version are two models, and the digest tells them apart.
    version = f"{metadata['version']}.{metadata['sha256'][:12]}"
    answer = client.post(
        "experiments",
        json={
            "model_id": model_row["model_id"],
            "model_version_id": version,
            "parameters": metadata["parameters"],
            "training_dataset": f"sha256:{metadata['training_data_sha256']}",
            "evaluations": metadata["metrics"],
            "artifact_file_paths": {"onnx": (models / metadata["file"]).absolute().as_uri()},
            "artifact_sha256": metadata["sha256"],
        },
    )
    if answer.status_code != 409:
        return accepted(answer)
    found = accepted(client.get(f"experiments/model-version-id/{version}"))["rows"]
    return next(row for row in found if row["model_id"] == model_row["model_id"])


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
    parser.add_argument("--promote", action="store_true", help="make it the champion of its model")
    arguments = parser.parse_args()
    try:
        metadata = read_metadata(arguments.models)
        with httpx.Client(base_url=f"{arguments.url}/v0.1/api/", timeout=10) as client:
            experiment = register(client, metadata, arguments.models, arguments.project)
            if arguments.promote:
                promote(client, experiment, metadata["name"], arguments.project)
    except httpx.HTTPError as error:
        sys.exit(f"error: no model_db at {arguments.url}, run make up in model_db: {error}")
    except RegisterError as error:
        sys.exit(f"error: {error}")
    state = "the champion" if arguments.promote else "registered"
    Console(soft_wrap=True, highlight=False).print(
        f"{metadata['name']} {experiment['model_version_id']} is {state} at {arguments.url}"
    )


if __name__ == "__main__":
    main()
