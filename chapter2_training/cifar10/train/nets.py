"""Builds the networks; each normalises the raw pixels of the files itself."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from .layers import EPSILON, Layer, layers_of


class Standardise(nn.Module):
    """Turns pixels [rows, 3072], 0 to 255, into standardised images [rows, 3, 32, 32]."""

    def __init__(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(1, 3, 1, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Subtracts the mean of each colour and divides by its standard deviation."""
        pictures = rows.reshape(-1, 3, 32, 32)
        return (pictures - self.get_buffer("mean")) / self.get_buffer("deviation")


def make_net(name: str, mean: Sequence[float], deviation: Sequence[float]) -> nn.Sequential:
    """Returns an untrained network: float32 [rows, 3072], 0 to 255, in, logits [rows, 10] out."""
    standardise = Standardise(mean, deviation)
    return nn.Sequential(*(module_of(layer, standardise) for layer in layers_of(name)))


def module_of(layer: Layer, standardise: Standardise) -> nn.Module:
    match layer.kind:
        case "standardise":
            return standardise
        case "convolution":
            # The normalisation that follows has its own bias.
            return nn.Conv2d(layer.inputs, layer.outputs, 3, padding=1, bias=False)
        case "normalisation":
            return nn.BatchNorm2d(layer.outputs, eps=EPSILON)
        case "relu":
            return nn.ReLU()
        case "pool":
            return nn.MaxPool2d(2)
        case "flatten":
            return nn.Flatten()
        case "dropout":
            return nn.Dropout()
        case "linear":
            return nn.Linear(layer.inputs, layer.outputs)


def weights_of(net: nn.Sequential) -> dict[str, np.ndarray]:
    """Returns the weights and statistics by layer number and name."""
    return {
        name: tensor.detach().cpu().numpy()
        for name, tensor in net.state_dict().items()
        # The batch counter is used in training only.
        if not name.endswith("num_batches_tracked")
    }
