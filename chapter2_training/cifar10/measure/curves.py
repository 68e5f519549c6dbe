"""Draws loss and accuracy per epoch."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def draw_curves(history: list[dict[str, float]], net: str) -> Figure:
    """Draws both curves for the training and the test images."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    numbers = range(1, len(history) + 1)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part in ("train", "test"):
            axes.plot(numbers, [row[f"{part}_{name}"] for row in history], "o-", label=part)
        axes.set(title=f"{net}: {name}", xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
