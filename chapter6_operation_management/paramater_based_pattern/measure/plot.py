"""Draws how many rows a model accepts, and how many of them rightly, over its threshold."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    threshold, accepted, right = (series[name] for name in ("threshold", "accepted", "right"))
    figure, axes = canvas(
        "The same model with another threshold: it accepts fewer rows, and more of them rightly",
        x="threshold of versicolor",
        y="test rows, of which 15 are versicolor",
    )
    lines(axes, threshold, ("accepted as versicolor", accepted), ("of these, versicolor", right))
    axes.set_ylim(bottom=0)
    return legend(figure)
