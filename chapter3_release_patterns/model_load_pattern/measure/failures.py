"""Creates the seven broken releases that must never be served."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from sklearn.linear_model import LogisticRegression

from tools.run.ports import free_port

from ..train.artifact import write_artifact
from ..train.convert import convert
from ..train.iris import load

UNREACHABLE = "store unreachable"
ALL_FAILURES = (
    *("missing", "truncated", "wrong digest", "not ONNX", "wrong input shape", "read-only disk"),
    UNREACHABLE,
)


class Failure(NamedTuple):
    """The environment of a replica, and the reason that its log must give for not starting."""

    environment: dict[str, str]
    reason: str


def release(store: Path, url: str, name: str, version: str = "1") -> dict[str, str]:
    """Returns the settings that release a model of a store."""
    described = (store / name / "1/metadata.json").read_bytes()
    uri = f"{url}/{name}/{version}/metadata.json"
    return {"MODEL_URI": uri, "MODEL_SHA256": hashlib.sha256(described).hexdigest()}


def narrow_model() -> bytes:
    """Returns a valid model that takes rows of three numbers instead of four."""
    split = load()
    narrow = LogisticRegression(max_iter=1_000).fit(split.x_train[:, :3], split.y_train)
    return convert(narrow, 3, "narrow", {"zipmap": False})


def failures(store: Path, url: str) -> dict[str, Failure]:
    """Adds broken models to the directory of a store, which is served at a URL."""
    good = json.loads((store / "iris_svc/1/metadata.json").read_bytes())
    shutil.copytree(store / "iris_svc", store / "truncated")
    with (store / "truncated/1/model.onnx").open("r+b") as file:
        file.truncate(1_000)
    write_artifact(store / "picture/1", b"a picture", good)
    write_artifact(store / "narrow/1", narrow_model(), good)
    svc = release(store, url, "iris_svc")
    nobody = f"http://127.0.0.1:{free_port()}"
    return {
        "missing": Failure(release(store, url, "iris_svc", "2"), "not found"),
        "truncated": Failure(release(store, url, "truncated"), "the SHA-256 is"),
        "wrong digest": Failure(
            release(store, url, "iris_logistic") | {"MODEL_SHA256": svc["MODEL_SHA256"]},
            "the SHA-256 is",
        ),
        "not ONNX": Failure(release(store, url, "picture"), "not a model that can be run"),
        "wrong input shape": Failure(release(store, url, "narrow"), "its only input has to be X"),
        # Not even root can create a directory there.
        "read-only disk": Failure(svc | {"MODEL_DIRECTORY": "/sys/model"}, "cannot write into"),
        UNREACHABLE: Failure(release(store, nobody, "iris_svc"), "cannot read"),
    }
