# Copied from chapter6_operation_management/offline_only_antipattern/train/traffic.py
"""Simulates what users send; nothing here was ever sent by anybody."""

import numpy as np

SIDE = 8
# Pixels and levels of grey; a digit has levels from 0 to 16.
FURTHEST_SHIFT, NOISE, BLACK = 1, 2.0, 16.0


def production(rows: np.ndarray, seed: int) -> np.ndarray:
    """Returns each row shifted by up to a pixel in both directions, with noise of a sensor."""
    draw = np.random.default_rng(seed)
    images = rows.reshape(-1, SIDE, SIDE)
    framed = np.pad(images, ((0, 0), *[(FURTHEST_SHIFT, FURTHEST_SHIFT)] * 2))
    tops, lefts = draw.integers(0, 2 * FURTHEST_SHIFT + 1, (2, len(images), 1, 1))
    side = np.arange(SIDE)
    shifted = framed[np.arange(len(images))[:, None, None], tops + side[:, None], lefts + side]
    noisy = shifted + draw.normal(0, NOISE, shifted.shape)
    return np.asarray(np.clip(noisy, 0, BLACK).reshape(rows.shape), np.float32)
