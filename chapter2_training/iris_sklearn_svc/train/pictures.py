"""Draws the plot that a training run records."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay


def draw_confusion_matrix(metadata: dict[str, Any]) -> Figure:
    """Draws the confusion matrix of the test rows."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    matrix = np.array(metadata["confusion_matrix"])
    display = ConfusionMatrixDisplay(matrix, display_labels=metadata["labels"])
    display.plot(ax=axes, cmap="Blues", colorbar=False)
    axes.set_title(f"{metadata['name']}: {matrix.sum()} test rows")
    return figure
