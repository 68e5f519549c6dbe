"""Trains three models and writes them to models/, which the store serves."""

import hashlib
import json
from pathlib import Path

from rich.console import Console

from . import linear, model
from .artifact import command_line, summary, write_artifact, write_whole, writing_to


def main() -> None:
    output: Path = command_line(__doc__).parse_args().output
    with writing_to(output):
        write_store(output)


def write_store(output: Path) -> None:
    """Writes each model with its metadata and champion.json, and finally a list of all models."""
    console = Console(soft_wrap=True, highlight=False)
    listed = []
    for onnx, metadata in [model.train(), *map(linear.train, linear.CLASSIFIERS)]:
        name, version = metadata["name"], metadata["version"]
        written = write_artifact(output / name / version, onnx, metadata)
        described = (output / name / version / "metadata.json").read_bytes()
        # The response of model_db to a request for the champion. The digest of the metadata covers
        # the labels and, because it contains the digest of the model, both files.
        champion = {
            "model_version_id": version,
            "stage": "champion",
            "artifact_file_paths": {"onnx": f"{version}/metadata.json"},
            "artifact_sha256": hashlib.sha256(described).hexdigest(),
        }
        write_whole(output / name / "champion.json", json.dumps(champion, indent=2).encode())
        listed.append({key: written[key] for key in ("name", "version", "sha256")})
        console.print(summary(written, output / name / version))
    # Written last, so that a store with a list is complete.
    write_whole(output / "metadata.json", json.dumps(listed, indent=2).encode())


if __name__ == "__main__":
    main()
