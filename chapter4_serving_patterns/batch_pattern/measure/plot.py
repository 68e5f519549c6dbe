"""Draws how many rows are done over time."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    series, figures = results.series, results.figures
    if not series:
        return None
    seconds = series["seconds"]
    figure, axes = canvas(
        f"Two jobs predict {figures['ratio_to_limit']:.0%} of the rows that the model alone does, "
        f"and {figures['ratio_to_row_by_row']:.0f} times as many as row by row",
        x="time since the jobs were planned (s)",
        y="rows predicted and stored",
    )
    one_by_one = [figures["row_by_row_per_second"] * x for x in seconds]
    lines(axes, seconds, ("two jobs", series["rows_done"]), ("row by row", one_by_one))
    return legend(figure)
