# Copied from chapter4_serving_patterns/prep_pred_pattern/train/pixels.py
"""Turns an image into the tensor that the model was trained on; nothing else defines it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Brings the values of a picture with 16 bits per pixel into a byte.
SIXTEEN_TO_EIGHT = 1 / 257


@dataclass(frozen=True)
class Preprocessing:
    """The size of a tensor, and what training found out about the colours red, green and blue."""

    short_side: int
    side: int
    mean: list[float]
    deviation: list[float]


def tensor_of(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Returns float32 [3, side, side]: the centre of the image, standardized by colour."""
    side, short_side = preprocessing.side, preprocessing.short_side
    # A JPEG is decoded at a half, a quarter or an eighth of its size if that is enough.
    image.draft(None, (short_side, short_side))
    picture = rgb_of(ImageOps.exif_transpose(image))
    # The centre of the image if its short side were `short_side`, without resizing the rest.
    crop = min(picture.size) * side / short_side
    left, top = ((length - crop) / 2 for length in picture.size)
    box = (left, top, left + crop, top + crop)
    centre = picture.resize((side, side), Image.Resampling.BILINEAR, box)
    colours = np.asarray(centre, np.float32) / 255
    colours -= np.array(preprocessing.mean, np.float32)
    colours /= np.array(preprocessing.deviation, np.float32)
    return np.ascontiguousarray(colours.transpose(2, 0, 1))


def rgb_of(image: Image.Image) -> Image.Image:
    """Returns the image in RGB, on white where it is transparent."""
    if image.mode.startswith("I"):
        # Pillow would make everything above 255 white.
        image = Image.fromarray((np.asarray(image) * SIXTEEN_TO_EIGHT).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    paper = Image.new("RGB", layer.size, "white")
    paper.paste(layer, mask=layer)
    return paper
