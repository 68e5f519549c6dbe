"""Signs releases by DSSE, so that a device takes a model only from those who hold the key."""

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from .artifact import write_whole

# Set before the import: otherwise ONNX Runtime sends telemetry.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

NAME = "digits"
PAYLOAD_TYPE = "application/vnd.edge-release+json"
VALID_DAYS = 365


def new_key() -> CryptoSigner:
    """Makes an Ed25519 key, of which only the public half leaves this process.

    A real one stays in a key management service, which signs and never shows it.
    """
    return CryptoSigner.generate_ed25519()


def public_half(key: CryptoSigner) -> str:
    """Returns the 32 bytes of the public key in hexadecimal."""
    return str(key.public_key.keyval["public"])


def describe(model: bytes, accuracy: float, sample: Sequence[Sequence[float]]) -> bytes:
    """Returns the metadata of a model as JSON."""
    columns, labels = len(sample[0]), [str(digit) for digit in range(10)]
    described = {
        "name": NAME,
        "version": sha256(model)[:8],
        "file": "model.onnx",
        "sha256": sha256(model),
        "input": {"name": "X", "type": "float32", "shape": ["rows", columns]},
        "output": {"name": "probabilities", "type": "float32", "shape": ["rows", len(labels)]},
        "labels": labels,
        "metrics": {"accuracy": round(accuracy, 4)},
        "sample": sample,
    }
    return json.dumps(described, indent=2).encode()


def payload_of(
    version: int, model: bytes, metadata: bytes, golden: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """Returns what is signed; the golden rows come with the probabilities of this model."""
    now = datetime.now(UTC).replace(microsecond=0)
    return {
        "version": version,
        "issued": now.isoformat(),
        "expires": (now + timedelta(days=VALID_DAYS)).isoformat(),
        # How much of the fleet may take it: a first share, and then all.
        "share": 1.0,
        "model": {"sha256": sha256(model), "bytes": len(model)},
        "metadata": {"sha256": sha256(metadata), "bytes": len(metadata)},
        "golden": {"rows": golden, "probabilities": predict(model, golden)},
    }


def predict(model: bytes, rows: Sequence[Sequence[float]]) -> list[list[float]]:
    session = onnxruntime.InferenceSession(model)
    inputs = {"X": np.asarray(rows, np.float32)}
    probabilities: list[list[float]] = session.run(["probabilities"], inputs)[0].tolist()
    return probabilities


def sign(payload: dict[str, Any], key: CryptoSigner) -> bytes:
    """Returns the signed envelope as JSON."""
    envelope = Envelope(json.dumps(payload).encode(), PAYLOAD_TYPE, {})
    envelope.sign(key)
    return json.dumps(envelope.to_dict()).encode()


def publish(
    directory: Path, payload: dict[str, Any], model: bytes, metadata: bytes, key: CryptoSigner
) -> None:
    """Writes the files of a release under their digests, and then its envelope."""
    directory.mkdir(parents=True, exist_ok=True)
    for content in (model, metadata):
        write_whole(directory / sha256(content), content)
    write_whole(directory / f"{payload['version']}.json", sign(payload, key))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
