"""Writes a network as ONNX, including normalisation and softmax."""

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, TensorProto
from onnx.checker import check_model
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from .cifar import CLASSES, PIXELS
from .layers import EPSILON, Layer, layers_of

INPUT, OUTPUT = "X", "probabilities"


def export(net: str, weights: Mapping[str, np.ndarray]) -> bytes:
    """Returns a graph: float32 [rows, 3072], 0 to 255, in, float32 [rows, 10] probabilities out.

    PyTorch's exporter needs PyTorch and more packages. These networks are a chain of a few kinds of
    layers, and each takes one or two nodes.
    """
    nodes: list[NodeProto] = [make_node("Reshape", [INPUT, "picture"], ["pixels"])]
    last = "pixels"
    for number, layer in enumerate(layers_of(net)):
        named = [name for name in weights if name.startswith(f"{number}.")]
        made = nodes_of(layer, [last, *named], f"layer{number}")
        nodes += made
        last = made[-1].output[0] if made else last
    nodes.append(make_node("Softmax", [last], [OUTPUT], axis=1))
    constants = {"picture": np.array([-1, 3, 32, 32]), **weights}
    graph = make_graph(
        nodes,
        "cifar10",
        [make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", PIXELS])],
        [make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", CLASSES])],
        [from_array(values, name) for name, values in constants.items()],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10)
    check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def nodes_of(layer: Layer, inputs: list[str], output: str) -> list[NodeProto]:
    """Returns the nodes of a layer; `inputs` are its input, then its weights in PyTorch's order."""
    match layer.kind:
        case "standardise":
            pixels, mean, deviation = inputs
            return [
                make_node("Sub", [pixels, mean], [f"{output}.centred"]),
                make_node("Div", [f"{output}.centred", deviation], [output]),
            ]
        case "convolution":
            return [make_node("Conv", inputs, [output], pads=[1, 1, 1, 1])]
        case "normalisation":
            return [make_node("BatchNormalization", inputs, [output], epsilon=EPSILON)]
        case "relu":
            return [make_node("Relu", inputs, [output])]
        case "pool":
            return [make_node("MaxPool", inputs, [output], kernel_shape=[2, 2], strides=[2, 2])]
        case "flatten":
            return [make_node("Flatten", inputs, [output])]
        case "linear":
            return [make_node("Gemm", inputs, [output], transB=1)]
        case "dropout":
            # Active in training only.
            return []
