"""Writes the preprocessing of another training, on photos in less light."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..train.digits import SEED
from ..train.model import FITTED_PHOTOS, fit_preprocessing
from ..train.photos import photos_of
from .processes import MODELS

OTHER_LIGHT = 0.4


def write_other_half(directory: Path, rows: np.ndarray) -> None:
    """Writes what prep would have from that training, without training its model."""
    photos = photos_of(rows[:FITTED_PHOTOS], SEED, OTHER_LIGHT)
    described = json.loads((MODELS / "preprocessing.json").read_bytes())
    described["tensor"] = asdict(fit_preprocessing(photos))
    described["model_sha256"] = hashlib.sha256(b"the model of that training").hexdigest()
    (directory / "preprocessing.json").write_text(json.dumps(described), "utf-8")
    for name in ("metadata.json", "sample.jpg"):
        shutil.copy(MODELS / name, directory)
