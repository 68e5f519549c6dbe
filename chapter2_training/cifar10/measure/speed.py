"""Times the training of a network."""

from time import perf_counter

import torch

from ..train.cifar import RECORD
from ..train.learning import make_deterministic
from ..train.nets import make_net

IMAGES = 64


def images_per_second(net: str) -> float:
    """Returns the number of images per second in one training step."""
    make_deterministic(1)
    learner = make_net(net, [128.0] * 3, [64.0] * 3).train()
    optimizer = torch.optim.Adam(learner.parameters())
    rows, labels = torch.rand(IMAGES, RECORD - 1) * 255, torch.arange(IMAGES) % 10
    began = perf_counter()
    optimizer.zero_grad()
    torch.autograd.backward(torch.nn.functional.cross_entropy(learner(rows), labels))
    optimizer.step()
    return IMAGES / (perf_counter() - began)
