"""Asks ten questions about a model, checks each answer, and exits with 1 if one is wrong.

That an answer is there is not enough: the model is trained again by the command that its card
names, and digests are computed anew.
"""

import argparse
import hashlib
import json
import logging
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parents[1]
# Far longer than a training takes.
RETRAIN_SECONDS = 300
# What a new training tells of its data and its code.
OF_THE_TRAINING = ("training_data_sha256", "code_sha256", "split", "unit", "range")

logger = logging.getLogger("audit")
Facts = dict[str, Any]


def read(path: Path) -> Facts:
    """Returns the object in a file, empty if the file is missing or holds anything else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def retrained(command: object) -> Facts:
    """Runs the command of a card, and returns the metadata of the model that it trains."""
    if not (isinstance(command, list) and command[:2] == ["python", "-m"]):
        return {}
    with TemporaryDirectory() as directory:
        words = [sys.executable, *map(str, command[1:]), "--output", directory]
        subprocess.run(words, cwd=HERE, check=False, capture_output=True, timeout=RETRAIN_SECONDS)
        return read(Path(directory) / "metadata.json")


def audit(models: Path, records: Path) -> dict[str, str]:
    """Returns each of the ten facts with what is wrong with it: an empty text if it holds."""
    card, model = read(models / "metadata.json"), sha256(models / "model.onnx")
    again = retrained(card.get("retrain"))
    team = read(records / "team.json").get("members", [])
    is_equal = model is not None and again.get("sha256") == card.get("sha256") == model
    installed = {each.name: each.version for each in distributions()}
    truth = {fact: again.get(fact) for fact in OF_THE_TRAINING} | {
        "owner": card.get("owner") if card.get("owner") in team else "in the team",
        "versions": {name: installed.get(name) for name in card.get("versions", [])},
        "retrain": card.get("retrain") if is_equal else "a command that gives the same file",
        "rollback_sha256": sha256(models / "rollback/model.onnx"),
        "dependents": [name for name in card.get("dependents", []) if (HERE / name).is_file()],
    }
    return {
        fact: "" if card.get(fact) and card[fact] == true else wrong(card.get(fact), true)
        for fact, true in truth.items()
    }


def wrong(stated: object, true: object) -> str:
    return f"is {stated}, not {true}" if stated else "is missing"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.audit", description=__doc__)
    parser.add_argument("--models", type=Path, default=HERE / "models", help="model and card")
    parser.add_argument("--records", type=Path, default=HERE / "records", help="holds team.json")
    parser.add_argument("--output", type=Path, required=True, help="where to write the result")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    found = audit(arguments.models, arguments.records)
    for fact, reason in found.items():
        logger.log(logging.ERROR if reason else logging.INFO, "%s %s", fact, reason or "holds")
    result = {"sha256": sha256(arguments.models / "model.onnx"), "facts": found}
    partial = arguments.output.with_suffix(".partial")
    partial.write_text(json.dumps(result), "utf-8")
    partial.replace(arguments.output)
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
