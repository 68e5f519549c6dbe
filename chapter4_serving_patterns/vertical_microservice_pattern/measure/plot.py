"""Draws the stages of two requests, and the accuracy over the calls that a row takes."""

import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.measure.plot import CONTROL, OURS, TARGET, TITLE_LETTERS
from tools.measure.results import Results

EARLY = ("proxy", "orientation", "reader")
FULL = (*EARLY, "second")
# The thresholds with room for their names, and where these begin: beside the point where the line
# is steep, and below it elsewhere.
NAMED = {
    0.0: (10, -5),
    0.5: (10, -5),
    0.7: (8, -14),
    0.9: (-11, -18),
    0.99: (-15, -18),
    1.01: (-9, -18),
}


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    figure = Figure(figsize=(7.5, 6.4))
    title = "A sure answer comes a stage earlier, and the threshold buys accuracy with calls"
    figure.suptitle(
        textwrap.fill(title, TITLE_LETTERS), x=0.01, ha="left", weight="bold", size="medium"
    )
    waterfall, curve = figure.subplots(2, height_ratios=(3, 4))
    draw_requests(waterfall, series)
    draw_curve(curve, results)
    return figure


def draw_requests(axes: Axes, series: dict[str, list[float]]) -> None:
    """Draws a line for the proxy and each stage of an early exit, and of a full chain."""
    requests = (("early", "sure: two stages", EARLY, 0), ("full", "unsure: three", FULL, 4))
    end = max(series["full_end_ms"])
    for request, name, services, first in requests:
        spans = zip(series[f"{request}_start_ms"], series[f"{request}_end_ms"], strict=True)
        for row, (start, stop) in enumerate(spans, first):
            colour = OURS if row > first else CONTROL
            axes.barh(row, stop - start, left=start, color=colour, height=0.8)
        axes.text(end * 1.03, first + (len(services) - 1) / 2, name, va="center")
    axes.set_yticks([0, 1, 2, 4, 5, 6, 7], EARLY + FULL, size="small")
    axes.invert_yaxis()
    axes.set_xlim(0, end * 1.4)
    axes.set_xlabel("time since the request; each stage waits 20 ms (ms)")


def draw_curve(axes: Axes, results: Results) -> None:
    """Draws a point for each threshold, and one model that reads both ways in one call."""
    series, figures = results.series, results.figures
    calls, accuracy = series["threshold_calls_per_row"], series["threshold_accuracy"]
    axes.grid(alpha=0.25)
    axes.plot(calls, accuracy, marker="o", color=OURS, label="chain, by threshold", clip_on=False)
    axes.axhline(figures["accuracy_one_model"], color=CONTROL, label="one model, one call")
    axes.axhline(0.985, color=TARGET, linestyle="--", linewidth=1.8, label="target")
    for threshold, x, y in zip(series["threshold"], calls, accuracy, strict=True):
        if threshold in NAMED:
            name = "all" if threshold > 1 else f"{threshold:g}"
            axes.annotate(name, (x, y), NAMED[threshold], textcoords="offset points")
    axes.set_ylim(min(accuracy) - 0.006, max(accuracy) + 0.003)
    axes.set_xlabel("calls a row, and the threshold below which a row is read again")
    axes.set_title("share of 1,080 images read correctly", loc="left", size="medium")
    axes.legend(loc="lower right")
