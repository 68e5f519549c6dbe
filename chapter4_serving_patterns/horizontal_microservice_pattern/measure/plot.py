"""Draws when each service works for one request, and the latency over the number of services."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.measure.plot import CONTROL, OURS, TARGET, TITLE_LETTERS, lines
from tools.measure.results import Results

SERVICES = ("setosa", "versicolor", "virginica")
DEADLINE_MS = 500.0


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    figure = Figure(figsize=(7.5, 5.6))
    title = "Three services at once take as long as the slowest, and a hung one costs the deadline"
    figure.suptitle(
        textwrap.fill(title, TITLE_LETTERS), x=0.01, ha="left", weight="bold", size="medium"
    )
    of_request, over_services = figure.subplots(2, height_ratios=(3, 2))
    draw_request(of_request, series)
    lines(
        over_services,
        series["services"],
        ("at once", series["at_once_ms"]),
        ("in sequence", series["in_sequence_ms"]),
    )
    over_services.set_xticks([1, 2, 3])
    over_services.set_ylim(bottom=0)
    over_services.set_xlabel("services, each of which waits 50 ms")
    over_services.set_title("median latency (ms)", loc="left", size="medium")
    over_services.legend(loc="upper left")
    return figure


def draw_request(axes: Axes, series: dict[str, list[float]]) -> None:
    """Draws a line for each service: at once, in sequence, and with the last one hung."""
    arms = (
        ("at once", series["at_once_start_ms"], series["at_once_end_ms"], OURS),
        ("in sequence", series["in_sequence_start_ms"], series["in_sequence_end_ms"], CONTROL),
        ("virginica hangs", [0.0, 0.0, 0.0], series["cut_end_ms"], OURS),
    )
    for group, (name, starts, ends, colour) in enumerate(arms):
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            axes.barh(group * 4 + row, end - start, left=start, color=colour, height=0.8)
        axes.text(DEADLINE_MS + 12, group * 4 + 1, name, va="center")
    axes.axvline(DEADLINE_MS, color=TARGET, linestyle="--", linewidth=1.8)
    axes.set_yticks(
        [group * 4 + row for group in range(len(arms)) for row in range(3)],
        SERVICES * len(arms),
        size="small",
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 700)
    axes.set_xlabel("time since the request, and the deadline (ms)")
