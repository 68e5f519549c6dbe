"""Draws the share of evaluations that is lost over the number of writers at once."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    figure, axes = canvas(
        f"With {series['writers'][-1]:.0f} writers at once, the registry loses "
        f"{series['lost_percent'][-1]:.0f} % of the evaluations; without a lock it loses "
        f"{series['careless_lost_percent'][-1]:.0f} %",
        x="writers to the same experiment at once",
        y="acknowledged evaluations lost (%)",
    )
    lines(
        axes,
        series["writers"],
        ("this pattern", series["lost_percent"]),
        ("without a lock", series["careless_lost_percent"]),
    )
    axes.set_ylim(0, 100)
    return legend(figure)
