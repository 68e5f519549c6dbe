"""Draws the plot that a training run records."""

from typing import Any

from matplotlib.figure import Figure


def draw_scores(metadata: dict[str, Any]) -> Figure:
    """Draws a histogram of the scores with the outlier threshold."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    histogram = metadata["score_histogram"]
    axes.stairs(histogram["counts"], histogram["edges"], fill=True, alpha=0.6)
    axes.axvline(metadata["threshold"], color="tab:red")
    share = metadata["metrics"]["outlier_share"]
    axes.set_title(f"{metadata['name']}: {share:.1%} of the rows are left of the line")
    axes.set_xlabel("score")
    axes.set_ylabel("rows")
    return figure
