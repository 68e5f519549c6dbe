"""Makes the seven releases that must never be served, each of them for real."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from sklearn.linear_model import LogisticRegression

from ..train.artifact import write_artifact
from ..train.convert import convert
from ..train.iris import load

UNREACHABLE = "store unreachable"
ALL_FAILURES = (
    *("missing", "truncated", "wrong digest", "not ONNX", "wrong input shape", "read-only disk"),
    UNREACHABLE,
)


class Failure(NamedTuple):
    """What a replica is told, and the reason that its log has to give for not starting."""

    environment: dict[str, str]
    reason: str


def release(store: Path, url: str, name: str, version: str = "1") -> dict[str, str]:
    """Names a model of a store that gives out a directory at a URL."""
    metadata = json.loads((store / name / "1/metadata.json").read_bytes())
    uri = f"{url}/{name}/{version}/model.onnx"
    return {"MODEL_URI": uri, "MODEL_SHA256": metadata["sha256"]}


def narrow_model() -> bytes:
    """Returns a model that works, and takes rows of three numbers where the server has four."""
    split = load()
    narrow = LogisticRegression(max_iter=1_000).fit(split.x_train[:, :3], split.y_train)
    return convert(narrow, 3, "narrow", {"zipmap": False})


def failures(store: Path, url: str) -> dict[str, Failure]:
    """Adds what is wrong to the directory of a store that gives it out at a URL.

    The last one is the store itself, which is out of reach once it has been stopped.
    """
    good = json.loads((store / "iris_svc/1/metadata.json").read_bytes())
    shutil.copytree(store / "iris_svc", store / "truncated")
    with (store / "truncated/1/model.onnx").open("r+b") as file:
        file.truncate(1_000)
    write_artifact(store / "picture/1", b"a picture", good)
    write_artifact(store / "narrow/1", narrow_model(), good)
    svc = release(store, url, "iris_svc")
    return {
        "missing": Failure(release(store, url, "iris_svc", "2"), "not found"),
        "truncated": Failure(release(store, url, "truncated"), "the SHA-256 is"),
        "wrong digest": Failure(
            release(store, url, "iris_logistic") | {"MODEL_SHA256": svc["MODEL_SHA256"]},
            "the SHA-256 is",
        ),
        "not ONNX": Failure(release(store, url, "picture"), "not a model that can be run"),
        "wrong input shape": Failure(release(store, url, "narrow"), "no input X of 4 features"),
        # Nobody, root included, makes a directory there.
        "read-only disk": Failure(svc | {"MODEL_DIRECTORY": "/sys/model"}, "cannot write into"),
        UNREACHABLE: Failure(svc, "cannot read"),
    }
