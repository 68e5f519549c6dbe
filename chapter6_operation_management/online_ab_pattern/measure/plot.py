"""Draws how often an experiment without an effect is flagged by the time of each look."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines, target
from tools.measure.results import Results

ALPHA_PERCENT = 5


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    flagged = series["tested_each_time_percent"][-1]
    figure, axes = canvas(
        f"Testing at each of {len(series['looks'])} looks finds an effect in {flagged:.0f} % of "
        "simulated experiments that have none",
        x="looks so far",
        y="simulated experiments without an effect that were flagged (%)",
    )
    lines(
        axes,
        series["looks"],
        ours=("interval that may be watched", series["watched_percent"]),
        control=("test at each look", series["tested_each_time_percent"]),
    )
    target(axes, ALPHA_PERCENT, "alpha")
    axes.set_xticks(range(0, len(series["looks"]) + 1, 5))
    axes.set_ylim(bottom=0)
    return legend(figure)
