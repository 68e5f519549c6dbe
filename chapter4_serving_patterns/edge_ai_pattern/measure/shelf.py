"""Makes releases to publish: good ones, and the twelve that a device has to refuse."""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from securesystemslib.signer import CryptoSigner

from ..train.release import describe, new_key, payload_of, public_half, publish, sha256, sign

HERE = Path(__file__).parents[1]
# What is installed when a bad release comes, and the version that it claims.
INSTALLED, NEXT = 2, 3
# The good one that comes after them.
NEWEST = 4
PAST: dict[str, Any] = {
    "issued": "2020-01-01T00:00:00+00:00",
    "expires": "2021-01-01T00:00:00+00:00",
}


class Shelf(NamedTuple):
    """Models with a key of our own, in a directory to publish from."""

    directory: Path
    key: CryptoSigner
    regression: bytes
    network: bytes
    golden: list[list[float]]

    def add(
        self, version: int, model: bytes, directory: Path | None = None, **changes: Any
    ) -> Path:
        """Signs a release, and returns the directory from which it can be published."""
        directory = directory or self.directory
        metadata = self.metadata(model)
        payload = payload_of(version, model, metadata, self.golden) | changes
        publish(directory / "releases", payload, model, metadata, self.key)
        return directory

    def files(self, version: int) -> tuple[bytes, bytes, bytes]:
        """Returns what a device stores of a release: what is signed, the model and its metadata."""
        envelope = json.loads((self.directory / "releases" / f"{version}.json").read_bytes())
        payload = base64.b64decode(envelope["payload"])
        parts = (json.loads(payload)[name]["sha256"] for name in ("model", "metadata"))
        model, metadata = ((self.directory / "releases" / part).read_bytes() for part in parts)
        return payload, model, metadata

    def metadata(self, model: bytes) -> bytes:
        return describe(model, 0.0, self.golden[:1])


def trained() -> tuple[bytes, bytes]:
    """Returns the models of releases 1 and 2, as `make train` has written them."""
    releases = json.loads((HERE / "models/metadata.json").read_bytes())["releases"]
    first, second = ((HERE / "models/releases" / releases[each]).read_bytes() for each in "12")
    return first, second


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the test set, and their digits."""
    with np.load(HERE / "models/held_out.npz") as file:
        return file["x"], file["y"]


def make_shelf(directory: Path) -> Shelf:
    """Publishes release 1, the regression, and releases 2 and 4, the network."""
    rows, _ = held_out()
    shelf = Shelf(directory, new_key(), *trained(), rows[:20].tolist())
    directory.mkdir(parents=True)
    (directory / "public_key").write_text(public_half(shelf.key), "utf-8")
    shelf.add(1, shelf.regression)
    shelf.add(INSTALLED, shelf.network)
    shelf.add(NEWEST, shelf.network)
    return shelf


def bad_releases(shelf: Shelf, base: Path) -> dict[str, tuple[Path, int]]:
    """Returns twelve releases that nobody should take: their directories and versions."""

    def signed(
        name: str, version: int = NEXT, model: bytes = shelf.network, **changes: Any
    ) -> Path:
        return shelf.add(version, model, base / name, **changes)

    def envelope(directory: Path, version: int = NEXT) -> Path:
        return directory / "releases" / f"{version}.json"

    def model_file(directory: Path) -> Path:
        return directory / "releases" / sha256(shelf.network)

    found = {
        "older": (signed("older", 1, shelf.regression), 1),
        "same version": (signed("same", INSTALLED, shelf.regression), INSTALLED),
        "expired": (signed("expired", **PAST), NEXT),
    }
    unsigned = envelope(signed("unsigned"))
    unsigned.write_bytes(changed(unsigned, signatures=[]))
    forged = signed("other key")
    payload = payload_of(NEXT, shelf.network, shelf.metadata(shelf.network), shelf.golden)
    envelope(forged).write_bytes(sign(payload, new_key()))
    altered = envelope(signed("payload"))
    other = json.dumps(payload | {"version": NEXT + 1}).encode()
    altered.write_bytes(changed(altered, payload=base64.b64encode(other).decode()))
    flipped = model_file(signed("model"))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    short = model_file(signed("truncated"))
    short.write_bytes(short.read_bytes()[:-1_000])
    large = shelf.network + bytes(1_000_000)
    found |= {
        "too large": (with_model(shelf, base / "large", large), NEXT),
        "other width": (with_model(shelf, base / "width", narrow()), NEXT),
        "not ONNX": (with_model(shelf, base / "text", b"this is no model" * 100), NEXT),
        "golden rows": (
            signed("golden", golden={"rows": shelf.golden, "probabilities": [[0.1] * 10] * 20}),
            NEXT,
        ),
    }
    for name in ("unsigned", "other key", "payload", "model", "truncated"):
        found[name] = (base / name, NEXT)
    return found


def with_model(shelf: Shelf, directory: Path, model: bytes) -> Path:
    """Signs what cannot be run, so its golden rows are those of the network."""
    metadata = shelf.metadata(model)
    payload = payload_of(NEXT, shelf.network, metadata, shelf.golden)
    payload["model"] = {"sha256": sha256(model), "bytes": len(model)}
    publish(directory / "releases", payload, model, metadata, shelf.key)
    return directory


def changed(path: Path, **fields: Any) -> bytes:
    return json.dumps(json.loads(path.read_bytes()) | fields).encode()


def narrow() -> bytes:
    """Returns a model of 63 pixels."""
    shapes = {"X": [None, 63], "probabilities": [None, 10]}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]
        for name, shape in shapes.items()
    )
    weights = numpy_helper.from_array(np.full((63, 10), 0.1, np.float32), "W")
    nodes = [
        helper.make_node("MatMul", ["X", "W"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    graph = helper.make_graph(nodes, "narrow", inputs, outputs, [weights])
    opset = helper.make_opsetid("", 21)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString())
