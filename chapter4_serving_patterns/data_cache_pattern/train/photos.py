# Copied from chapter4_serving_patterns/prep_pred_pattern/train/photos.py
"""Draws scikit-learn's digits as photos: ink on paper, out of centre, in some light, with noise."""

import io

import numpy as np
from PIL import Image

from .digits import SEED, load

WIDTH, HEIGHT = 320, 240
# The part of the photo's height that a digit fills, and how far it is from the middle.
LOWEST_SIZE, HIGHEST_SIZE, SHIFT = 0.72, 0.82, 0.03
NOISE, QUALITY = 6.0, 75


def draw(
    digit: np.ndarray,
    random: np.random.Generator,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    light: float = 1.0,
) -> bytes:
    """Returns a JPEG of a digit, given its 64 pixels; less light makes a darker photo."""
    width, height = size
    side = round(height * random.uniform(LOWEST_SIZE, HIGHEST_SIZE))
    left, top = (
        round((length - side) / 2 + height * random.uniform(-SHIFT, SHIFT)) for length in size
    )
    ink, paper = random.integers(0, 80, 3), random.integers(150, 220, 3)
    strokes = Image.fromarray((digit.reshape(8, 8) * 15).astype(np.uint8))
    photo = Image.new("RGB", size, tuple(paper.tolist()))
    photo.paste(
        tuple(ink.tolist()),
        (left, top),
        strokes.resize((side, side), Image.Resampling.BICUBIC),
    )
    noise = NOISE * random.standard_normal((height, width, 1), np.float32)
    pixels = np.clip(light * (np.asarray(photo) + noise), 0, 255).astype(np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(pixels).save(jpeg, "JPEG", quality=QUALITY)
    return jpeg.getvalue()


def photos_of(rows: np.ndarray, seed: int, light: float = 1.0) -> list[bytes]:
    random = np.random.default_rng(seed)
    return [draw(row, random, light=light) for row in rows]


def load_photos(light: float = 1.0) -> tuple[list[bytes], np.ndarray, list[bytes], np.ndarray]:
    """Returns the photos and labels for training, then those for testing."""
    x_train, y_train, x_test, y_test = load()
    return photos_of(x_train, SEED, light), y_train, photos_of(x_test, SEED + 1, light), y_test
