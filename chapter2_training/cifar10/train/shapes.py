"""Draws ten classes of shapes and writes them in the format of CIFAR-10's archive."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .cifar import CLASSES, FOLDER, LABELS_FILE, TEST_FILE, TRAIN_FILES

Grid = np.ndarray
# Whether each pixel [images, 32, 32] is inside the shape; x and y are relative to its radius and
# rotated.
SHAPES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "disc": lambda x, y: x**2 + y**2 < 0.8,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.8) < 0.2,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.75,
    "frame": lambda x, y: np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.7) < 0.18,
    "triangle": lambda x, y: (y < 0.7) & (y > 1.7 * np.abs(x) - 0.9),
    "cross": lambda x, y: (
        (np.minimum(np.abs(x), np.abs(y)) < 0.25) & (np.maximum(np.abs(x), np.abs(y)) < 0.95)
    ),
    "bar": lambda x, y: (np.abs(x) < 0.28) & (np.abs(y) < 1.0),
    "bars": lambda x, y: (np.abs(np.abs(x) - 0.5) < 0.22) & (np.abs(y) < 0.9),
    "checks": lambda x, y: (x * y > 0) & (np.maximum(np.abs(x), np.abs(y)) < 0.9),
    "moon": lambda x, y: (x**2 + y**2 < 0.9) & ((x - 0.5) ** 2 + y**2 > 0.55),
}


def draw(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [count, 3, 32, 32] and labels uint8 [count], balanced over the classes.

    Position, size, angle (up to 20 degrees), both colours and the noise are random.
    """
    labels = random.permutation(np.arange(count) % CLASSES).astype(np.uint8)
    centre = random.uniform(-5, 5, (count, 2, 1, 1)) + 15.5
    radius = random.uniform(8, 13, (count, 1, 1))
    angle = random.uniform(-0.35, 0.35, (count, 1, 1))
    rows, columns = np.mgrid[0:32, 0:32]
    down, right = (rows - centre[:, 0]) / radius, (columns - centre[:, 1]) / radius
    x = right * np.cos(angle) + down * np.sin(angle)
    y = down * np.cos(angle) - right * np.sin(angle)
    inside = np.zeros((count, 32, 32), bool)
    for label, shape in enumerate(SHAPES.values()):
        chosen = labels == label
        inside[chosen] = shape(x[chosen], y[chosen])
    ground = random.uniform(0, 255, (count, 3, 1, 1))
    # Each colour channel differs from the background by at least 60, modulo 256.
    ink = (ground + random.uniform(60, 196, (count, 3, 1, 1))) % 256
    images = np.where(inside[:, None], ink, ground) + random.normal(0, 18, (count, 3, 32, 32))
    return np.clip(images.round(), 0, 255).astype(np.uint8), labels


def write_archive(path: Path, images: int, seed: int) -> None:
    """Writes six files of `images` images each; the same seed gives the same bytes."""
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", 1, file, mtime=0) as packed,
        tarfile.open(mode="w", fileobj=packed) as archive,
    ):
        for number, name in enumerate((*TRAIN_FILES, TEST_FILE)):
            drawn, labels = draw(images, np.random.default_rng([seed, number]))
            records = np.hstack([labels[:, None], drawn.reshape(images, -1)])
            add(archive, name, records.tobytes())
        add(archive, LABELS_FILE, "\n".join(SHAPES).encode())


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(f"{FOLDER}/{name}")
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
