"""Draws what a run of training found."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay


def draw_confusion_matrix(metadata: dict[str, Any]) -> Figure:
    """Draws how often a row of each true label was predicted as each label."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    matrix = np.array(metadata["confusion_matrix"])
    display = ConfusionMatrixDisplay(matrix, display_labels=metadata["labels"])
    display.plot(ax=axes, cmap="Blues", colorbar=False)
    axes.set_title(f"{metadata['name']}: {matrix.sum()} rows that were not trained on")
    return figure
