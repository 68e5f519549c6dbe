# Copied from chapter4_serving_patterns/prep_pred_pattern/train/model.py
"""Fits preprocessing and classifier on photos, as a pair, and exports the classifier as ONNX."""

import hashlib
import io
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import compose, helper, numpy_helper
from PIL import Image

from . import heavy
from .artifact import digest
from .digits import IR_VERSION, LABELS, OPSET, SIDE, draw_warps, evaluate
from .photos import load_photos
from .pixels import Preprocessing, tensor_of

NAME = "digits_photos"
VERSION = "1"
# One copy of each picture: a light model. Its time grows with the number of warped copies.
COPIES = 1
UNFITTED = Preprocessing(short_side=256, side=224, mean=[0.0] * 3, deviation=[1.0] * 3)
SHAPE = (3, UNFITTED.side, UNFITTED.side)
POOL = UNFITTED.side // SIDE
# Mean and deviation of so many photos are those of all.
FITTED_PHOTOS = 200
# The classifier expects ink from 0 to 16; ink is darker than the mean.
INK_PER_DEVIATION, INK_OF_MEAN = -4.0, 8.0


@dataclass(frozen=True)
class Trained:
    """A model and the preprocessing that it was trained with; each names the digest of the other.

    The pair is the digest of the preprocessing file, which includes that of the model.
    """

    model: bytes
    preprocessing: bytes
    metadata: dict[str, Any]
    sample: bytes


def tensors_of(photos: list[bytes], preprocessing: Preprocessing) -> np.ndarray:
    return np.stack([tensor_of(Image.open(io.BytesIO(each)), preprocessing) for each in photos])


def fit_preprocessing(photos: list[bytes]) -> Preprocessing:
    """Finds the mean and the deviation of each colour."""
    colours = tensors_of(photos[:FITTED_PHOTOS], UNFITTED)
    mean, deviation = colours.mean(axis=(0, 2, 3)), colours.std(axis=(0, 2, 3))
    return Preprocessing(UNFITTED.short_side, UNFITTED.side, mean.tolist(), deviation.tolist())


def rows_of(photos: list[bytes], preprocessing: Preprocessing) -> np.ndarray:
    """Returns what the graph of `export_pools` computes: 64 pixels of ink for each photo."""
    rows = []
    for photo in photos:
        grey = tensors_of([photo], preprocessing)[0].mean(axis=0)
        pools = grey.reshape(SIDE, POOL, SIDE, POOL).mean(axis=(1, 3))
        rows.append(pools.ravel() * INK_PER_DEVIATION + INK_OF_MEAN)
    return np.array(rows, np.float32)


def export_pools() -> onnx.ModelProto:
    """Exports float32 [pictures, 3, 224, 224] -> float32 [pictures, 64] as ONNX."""
    constants = {
        "colours": np.array([1]),
        "factor": np.array(INK_PER_DEVIATION, np.float32),
        "offset": np.array(INK_OF_MEAN, np.float32),
        "rows_of_ink": np.array([-1, SIDE * SIDE]),
    }
    size = [POOL, POOL]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pictures", "colours"], ["grey"]),
            helper.make_node("AveragePool", ["grey"], ["pools"], kernel_shape=size, strides=size),
            helper.make_node("Mul", ["pools", "factor"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["ink"]),
            helper.make_node("Reshape", ["ink", "rows_of_ink"], ["rows"]),
        ],
        "pools",
        [helper.make_tensor_value_info("pictures", onnx.TensorProto.FLOAT, [None, *SHAPE])],
        [helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, [None, SIDE * SIDE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)


def export(classifier: bytes) -> bytes:
    """Puts the pools before the exported classifier."""
    model = compose.merge_models(
        export_pools(), onnx.load_from_string(classifier), io_map=[("rows", "X")], name=NAME
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def train(copies: int = COPIES, light: float = 1.0) -> Trained:
    """Trains on photos in this light, and predicts with the mean of this many warped copies."""
    train_photos, y_train, test_photos, y_test = load_photos(light)
    preprocessing = fit_preprocessing(train_photos)
    rows = rows_of(train_photos, preprocessing)
    classifier, warps = heavy.fit(rows, y_train), draw_warps(copies)
    model = export(heavy.export(classifier, warps))
    described = {
        "model_sha256": hashlib.sha256(model).hexdigest(),
        "labels": LABELS,
        "tensor": asdict(preprocessing),
    }
    file = json.dumps(described, indent=2).encode()
    evaluated = warps[: heavy.EVALUATED_COPIES]
    predicted = heavy.predict(classifier, evaluated, rows_of(test_photos, preprocessing))
    metadata = {
        "name": NAME,
        "version": VERSION,
        "input": {"name": "pictures", "shape": [None, *SHAPE]},
        "output": {"name": "probabilities", "shape": [None, len(LABELS)]},
        "labels": LABELS,
        "copies": copies,
        # The names of the book.
        "data_type": "str",
        "data_structure": "(1,1)",
        "pair": hashlib.sha256(file).hexdigest(),
        "prediction_type": "float32",
        "prediction_structure": f"(1,{len(LABELS)})",
        "prediction_sample": predicted[:1].tolist(),
        "metrics": evaluate(predicted, y_test),
        "training_data_sha256": digest(rows, y_train),
    }
    return Trained(model, file, metadata, test_photos[0])
