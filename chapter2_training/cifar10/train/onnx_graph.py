"""Writes a network as ONNX, with its normalisation before it and its soft-max behind it."""

import numpy as np
from onnx import NodeProto, TensorProto
from onnx.checker import check_model
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from torch import nn

from .cifar import CLASSES, PIXELS
from .nets import Standardise

INPUT, OUTPUT = "X", "probabilities"


def export(net: nn.Sequential) -> bytes:
    """Returns a graph: float32 [rows, 3072] of 0 to 255 in, float32 [rows, 10] probabilities out.

    PyTorch's own exporter is either deprecated or needs packages of its own; these networks are a
    chain of few kinds of layers, each of which is a node or two.

    Raises:
        TypeError: a layer of a kind that is not known here.
    """
    weights: dict[str, np.ndarray] = {"picture": np.array([-1, 3, 32, 32])}
    nodes: list[NodeProto] = [make_node("Reshape", [INPUT, "picture"], ["pixels"])]
    last = "pixels"
    for number, layer in enumerate(net):
        named = {
            f"{number}.{name}": tensor.detach().cpu().numpy()
            for name, tensor in layer.state_dict().items()
            if name != "num_batches_tracked"
        }
        weights |= named
        here = f"layer{number}"
        made = nodes_of(layer, [last, *named], here)
        nodes += made
        last = made[-1].output[0] if made else last
    nodes.append(make_node("Softmax", [last], [OUTPUT], axis=1))
    graph = make_graph(
        nodes,
        "cifar10",
        [make_tensor_value_info(INPUT, TensorProto.FLOAT, ["rows", PIXELS])],
        [make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["rows", CLASSES])],
        [from_array(values, name) for name, values in weights.items()],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10)
    check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def nodes_of(layer: nn.Module, inputs: list[str], output: str) -> list[NodeProto]:
    """Returns the nodes of a layer; its weights follow its input, in the order of its state."""
    match layer:
        case Standardise():
            pixels, mean, deviation = inputs
            return [
                make_node("Sub", [pixels, mean], [f"{output}.centred"]),
                make_node("Div", [f"{output}.centred", deviation], [output]),
            ]
        case nn.Conv2d(padding=padding):
            return [make_node("Conv", inputs, [output], pads=[*padding, *padding])]
        case nn.BatchNorm2d(eps=eps):
            return [make_node("BatchNormalization", inputs, [output], epsilon=eps)]
        case nn.ReLU():
            return [make_node("Relu", inputs, [output])]
        case nn.MaxPool2d(kernel_size=size):
            sides = [size, size]
            return [make_node("MaxPool", inputs, [output], kernel_shape=sides, strides=sides)]
        case nn.Flatten():
            return [make_node("Flatten", inputs, [output])]
        case nn.Linear():
            return [make_node("Gemm", inputs, [output], transB=1)]
        case nn.Dropout():
            # It does something in training only.
            return []
    raise TypeError(f"no ONNX node is known for {layer}")
