"""Builds the networks: each takes rows as the files hold them, so nobody else normalises."""

from collections.abc import Sequence

import torch
from torch import nn

from .cifar import CLASSES

# The number of channels of each convolution; "pool" halves both sides of the picture.
VGG: dict[str, Sequence[int | str]] = {
    "vgg11": (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    "vgg16": (
        *(64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"),
        *(512, 512, 512, "pool", 512, 512, 512, "pool"),
    ),
}
SIMPLE: Sequence[int | str] = (16, "pool", 32, "pool", 64, "pool")


class Standardise(nn.Module):
    """Turns rows [rows, 3072] of values from 0 to 255 into pictures [rows, 3, 32, 32] around 0."""

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(1, 3, 1, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Subtracts the mean of each colour and divides by its deviation."""
        pictures = rows.reshape(-1, 3, 32, 32)
        return (pictures - self.get_buffer("mean")) / self.get_buffer("deviation")


def convolutions(plan: Sequence[int | str]) -> list[nn.Module]:
    """Returns a 3 x 3 convolution, a batch normalisation and a ReLU for each number."""
    layers: list[nn.Module] = []
    channels = 3
    for width in plan:
        if isinstance(width, int):
            # The normalisation that follows has a bias of its own.
            convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return layers


def make_net(name: str, mean: Sequence[float], deviation: Sequence[float]) -> nn.Sequential:
    """Returns an untrained network: float32 [rows, 3072] of 0 to 255 in, logits [rows, 10] out."""
    if name == "simple":
        plan, features, hidden = SIMPLE, 64 * 4 * 4, 128
    else:
        plan, features, hidden = VGG[name], 512, 512
    head = [nn.Flatten(), nn.Dropout(), nn.Linear(features, hidden), nn.ReLU(), nn.Dropout()]
    layers = [*convolutions(plan), *head, nn.Linear(hidden, CLASSES)]
    return nn.Sequential(Standardise(mean, deviation), *layers)
