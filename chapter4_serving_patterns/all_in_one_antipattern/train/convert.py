# Copied from chapter4_serving_patterns/web_single_pattern/train/convert.py
"""Converts a scikit-learn estimator to ONNX, with the same bytes every time."""

from typing import Any

import numpy as np
from onnx.checker import check_model
from onnx.helper import make_opsetid
from skl2onnx import to_onnx

# The newest opsets that both ONNX Runtime and skl2onnx support.
OPSET = {"": 21, "ai.onnx.ml": 3}


def convert(estimator: Any, features: int, name: str, options: dict[str, Any] | None) -> bytes:
    """Returns the estimator as an ONNX model whose input is float32 [rows, features]."""
    row = np.zeros((1, features), np.float32)
    model = to_onnx(estimator, row, name=name, options=options, target_opset=OPSET)
    # skl2onnx lists the opsets in set order, which varies between processes, and some twice.
    versions = {opset.domain: opset.version for opset in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(make_opsetid(*opset) for opset in sorted(versions.items()))
    check_model(model, full_check=True)
    return bytes(model.SerializeToString())
