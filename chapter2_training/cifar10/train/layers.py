"""Describes each network as a list of layers, for PyTorch to train and ONNX to serve."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from .cifar import CLASSES

Kind = Literal[
    "standardise",
    "convolution",
    "normalisation",
    "relu",
    "pool",
    "flatten",
    "dropout",
    "linear",
]
# Added to the variance by batch normalisation.
EPSILON = 1e-5
# The output channels of each convolution; "pool" halves both sides of the image.
VGG: dict[str, Sequence[int | str]] = {
    "vgg11": (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    "vgg16": (
        *(64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"),
        *(512, 512, 512, "pool", 512, 512, 512, "pool"),
    ),
}
# Pooling first leaves a quarter of the pixels, so a laptop trains it in seconds.
SIMPLE: Sequence[int | str] = ("pool", 16, "pool", 32, "pool", 64)


class Layer(NamedTuple):
    """One layer: its kind, and the number of input and output channels or features."""

    kind: Kind
    inputs: int = 0
    outputs: int = 0


def layers_of(net: str) -> list[Layer]:
    """Returns the layers from pixels [rows, 3072], 0 to 255, to logits [rows, 10]."""
    if net == "simple":
        plan, head = SIMPLE, [Layer("linear", 64 * 4 * 4, CLASSES)]
    else:
        plan = VGG[net]
        head = [
            Layer("dropout"),
            Layer("linear", 512, 512),
            Layer("relu"),
            Layer("dropout"),
            Layer("linear", 512, CLASSES),
        ]
    return [Layer("standardise"), *convolutions(plan), Layer("flatten"), *head]


def convolutions(plan: Sequence[int | str]) -> list[Layer]:
    """Turns each number into a 3 x 3 convolution, a batch normalisation and a ReLU."""
    layers: list[Layer] = []
    channels = 3
    for width in plan:
        if isinstance(width, int):
            layers += [
                Layer("convolution", channels, width),
                Layer("normalisation", width, width),
                Layer("relu"),
            ]
            channels = width
        else:
            layers.append(Layer("pool"))
    return layers
