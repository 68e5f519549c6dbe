"""Trains the model and writes it to models/, with its preprocessing and photos for the store."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from PIL import Image
from rich.console import Console

from .artifact import command_line, summary, write_artifact, write_whole, writing_to
from .digits import SEED, load
from .model import Trained, train
from .photos import draw
from .pixels import Preprocessing, tensor_of

PHOTOS, SIZE = 100, (640, 480)
# The ID under which the store has the first photo.
SAMPLE = "0000"


def draw_photos(count: int) -> list[bytes]:
    """Returns photos of digits that the model was not trained on."""
    random = np.random.default_rng(SEED)
    return [draw(digit, random, SIZE) for digit in load()[2][:count]]


def in_names_of_the_book(trained: Trained, photo: bytes) -> dict[str, Any]:
    """Describes what a request holds, an ID of the store, and the prediction of that photo."""
    preprocessing = Preprocessing(**json.loads(trained.preprocessing)["tensor"])
    tensor = tensor_of(Image.open(io.BytesIO(photo)), preprocessing)
    model: Any = ReferenceEvaluator(onnx.load_from_string(trained.model))
    [predicted] = model.run(None, {trained.metadata["input"]["name"]: tensor[None]})
    return {
        "sample": [SAMPLE],
        "data_type": "str",
        "data_structure": "(1,1)",
        "data_sample": [SAMPLE],
        "prediction_type": "float32",
        "prediction_structure": f"(1,{predicted.shape[1]})",
        "prediction_sample": predicted.tolist(),
    }


def write(directory: Path, trained: Trained, photos: list[bytes]) -> dict[str, Any]:
    """Writes a model, its preprocessing and photos named 0000, 0001 and so on."""
    (directory / "photos").mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos):
        write_whole(directory / f"photos/{number:04}.jpg", photo)
    # Before the metadata, whose presence says that everything is there.
    write_whole(directory / "preprocessing.json", trained.preprocessing)
    metadata = trained.metadata | in_names_of_the_book(trained, photos[0])
    return write_artifact(directory, trained.model, metadata)


def main() -> None:
    arguments = command_line(__doc__).parse_args()
    trained, photos = train(), draw_photos(PHOTOS)
    with writing_to(arguments.output):
        written = write(arguments.output, trained, photos)
    Console(soft_wrap=True, highlight=False).print(summary(written, arguments.output))


if __name__ == "__main__":
    main()
