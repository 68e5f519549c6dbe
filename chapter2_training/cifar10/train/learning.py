"""Trains a network epoch by epoch, with checkpoints to resume from."""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .cifar import RECORD

SCORE_ROWS = 500


def make_deterministic(threads: int) -> None:
    """Makes PyTorch deterministic; an operation that cannot be raises a RuntimeError."""
    # cuBLAS reads this on first use.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.set_num_threads(threads)
    # Equals torch.use_deterministic_algorithms(True), but does not import PyTorch's compiler.
    torch.set_deterministic_debug_mode("error")
    torch.backends.cudnn.benchmark = False


def load(path: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Returns the images uint8 [rows, 3072], memory-mapped, and the labels int64 [rows]."""
    rows = np.memmap(path, np.uint8, "r").reshape(-1, RECORD)
    return rows[:, 1:], torch.from_numpy(rows[:, 0].astype(np.int64))


def batch(images: np.ndarray, chosen: np.ndarray, device: torch.device) -> torch.Tensor:
    """Returns the chosen images as float32 [rows, 3072], still from 0 to 255."""
    return torch.from_numpy(images[chosen]).to(device).float()


def batches(rows: int, size: int) -> list[slice]:
    """Splits rows into batches; a single last row joins the batch before, as it has no variance."""
    starts = list(range(0, max(rows - 1, 1), size))
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], rows], strict=True)]


def epochs(
    net: nn.Sequential,
    train: tuple[np.ndarray, torch.Tensor],
    test: tuple[np.ndarray, torch.Tensor],
    settings: dict[str, Any],
    checkpoint: Path,
    advance: Callable[[], None],
) -> Iterator[dict[str, float]]:
    """Yields the loss and accuracy on training and test images for each epoch.

    The training scores are collected while the network is learning. The state is written to
    `checkpoint` after each epoch. An existing checkpoint is resumed: its epochs are yielded from
    the history, and the final result equals that of an uninterrupted run.
    """
    images, labels = train
    device = next(net.parameters()).device
    state: dict[str, Any] = {}
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        net.load_state_dict(state["net"])
    history: list[dict[str, float]] = state.get("history", [])
    yield from history
    # Creating an optimizer makes PyTorch import its compiler, which takes a second.
    if len(history) == settings["epochs"]:
        return
    optimizer = torch.optim.Adam(net.parameters(), lr=settings["learning_rate"])
    if state:
        optimizer.load_state_dict(state["optimizer"])
    for epoch in range(len(history), settings["epochs"]):
        # Each epoch has its own seed, so a checkpoint needs no generator state.
        seed = [settings["seed"], epoch]
        order = np.random.default_rng(seed).permutation(len(images))
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        for group in optimizer.param_groups:
            half_turn = math.pi * epoch / settings["epochs"]
            group["lr"] = settings["learning_rate"] * (1 + math.cos(half_turn)) / 2
        net.train()
        loss_sum, right = 0.0, 0
        for part in batches(len(images), settings["batch_size"]):
            # Sorted, to read the file sequentially.
            chosen = np.sort(order[part])
            optimizer.zero_grad()
            logits = net(batch(images, chosen, device))
            loss = nn.functional.cross_entropy(logits, labels[chosen].to(device))
            torch.autograd.backward(loss)
            optimizer.step()
            loss_sum += float(loss.detach()) * len(chosen)
            right += int((logits.argmax(1).cpu() == labels[chosen]).sum())
            advance()
        tested = score(net, *test)
        row = {
            "train_loss": loss_sum / len(images),
            "train_accuracy": right / len(images),
            "test_loss": tested["loss"],
            "test_accuracy": tested["accuracy"],
        }
        history.append(row)
        state = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "history": history}
        partial = checkpoint.with_name(f"{checkpoint.name}.partial")
        # It may be a link that leads elsewhere.
        partial.unlink(missing_ok=True)
        torch.save(state, partial)
        partial.replace(checkpoint)
        yield row


def predict(net: nn.Sequential, images: np.ndarray) -> torch.Tensor:
    """Returns the logits [rows, 10]; leaves the network in evaluation mode."""
    net.eval()
    device = next(net.parameters()).device
    with torch.inference_mode():
        parts = [
            net(batch(images, np.arange(start, min(start + SCORE_ROWS, len(images))), device))
            for start in range(0, len(images), SCORE_ROWS)
        ]
        return torch.cat(parts).cpu()


def score(net: nn.Sequential, images: np.ndarray, labels: torch.Tensor) -> dict[str, float]:
    """Returns the mean loss and the accuracy."""
    logits = predict(net, images)
    return {
        "loss": float(nn.functional.cross_entropy(logits, labels)),
        "accuracy": float((logits.argmax(1) == labels).float().mean()),
    }
