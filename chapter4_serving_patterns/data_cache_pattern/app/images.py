# Copied from chapter4_serving_patterns/prep_pred_pattern/prep/images.py
"""Decodes the pictures that callers send, and rejects what is not one or would cost too much."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .pixels import Preprocessing, tensor_of

FORMATS = ("JPEG", "PNG", "WEBP")
# Pixels to decode: 64 MB. A JPEG may have more, because it is decoded at a fraction of its size,
# but libjpeg may keep six bytes for each of its pixels.
MAX_PIXELS, MAX_JPEG_PIXELS = 16_000_000, 64_000_000
# Each scan passes over the whole picture; a progressive JPEG of a camera has about ten.
MAX_SCANS, SCAN = 50, b"\xff\xda"

# These limits are lower than Pillow's own, which only warns of 100 million pixels.
Image.MAX_IMAGE_PIXELS = None


class PictureError(Exception):
    """The bytes are not a picture that can be decoded within the limits."""


def tensor_from(content: bytes, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Returns the tensor of a picture, given the bytes of its file.

    Raises:
        PictureError: it is no JPEG, PNG or WebP, or incomplete, or too large.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:
        # Pillow raises a different class for each fault.
        raise PictureError(f"not a picture in one of the formats {', '.join(FORMATS)}") from error
    require_size(image, content, preprocessing.short_side)
    try:
        return tensor_of(image, preprocessing)
    except Exception as error:
        raise PictureError(f"the {image.format} is broken or incomplete") from error


def require_size(image: Image.Image, content: bytes, short_side: int) -> None:
    """Rejects, by its header alone, a picture that would take too much memory or time."""
    width, height = image.size
    if image.format == "JPEG":
        require(width * height <= MAX_JPEG_PIXELS, f"a JPEG of {width} x {height} pixels")
        require(content.count(SCAN) <= MAX_SCANS, f"a JPEG of more than {MAX_SCANS} scans")
        image.draft(None, (short_side, short_side))
    width_decoded, height_decoded = image.size
    what = f"a {image.format} of {width} x {height} pixels"
    require(width_decoded * height_decoded <= MAX_PIXELS, what)


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise PictureError(f"{otherwise} is too large")
