"""Breaks pictures in many ways."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

# Small, because only their structure matters.
SIZE = (64, 48)
TYPES = ("jpeg", "png", "webp")


def mutants_of(photo: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Yields the content type and the bytes of broken pictures."""
    image = Image.open(io.BytesIO(photo)).resize(SIZE)
    originals = []
    for name in TYPES:
        file = io.BytesIO()
        image.save(file, name)
        originals.append(file.getvalue())
    random = np.random.default_rng(seed)
    for number in range(count):
        original = originals[number % len(originals)]
        broken = bytearray(original)
        # Headers are short, so half of the faults are near the beginning.
        length = len(broken) if random.random() < 0.5 else 200
        for place in random.integers(0, length, random.integers(1, 10)):
            broken[place] = random.integers(0, 256)
        if random.random() < 0.3:
            del broken[random.integers(0, len(broken)) :]
        yield f"image/{TYPES[number % len(TYPES)]}", bytes(broken)
