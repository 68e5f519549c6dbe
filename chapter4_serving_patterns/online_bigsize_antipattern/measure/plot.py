"""Draws the accuracy of each model over the time for one row, and the deadline."""

from matplotlib.figure import Figure

from tools.measure.plot import CONTROL, OURS, canvas, legend, target
from tools.measure.results import Results

from .models import COPIES

DEADLINE_MS = 100
NAMES = {"good": "SVC", "regression": "regression", "forest": "forest", "bad": "ensemble"}


def draw(results: Results) -> Figure | None:
    figures = results.figures
    if "bad_row_ms" not in figures:
        return None
    slower = figures["bad_row_ms"] / figures["good_row_ms"]
    points = 100 * (figures["good_accuracy"] - figures["bad_accuracy"])
    figure, axes = canvas(
        f"The big model takes {slower:.0f} times as long and is {points:.1f} points less accurate",
        x="time for one row (ms)",
        y="accuracy on the 540 test rows",
    )
    axes.set_xscale("log")
    axes.grid(alpha=0.25)
    axes.plot(
        [figures[f"row_ms_of_{copies}_copies"] for copies in COPIES] + [figures["bad_row_ms"]],
        [figures[f"accuracy_of_{copies}_copies"] for copies in COPIES] + [figures["bad_accuracy"]],
        marker=".",
        color=CONTROL,
        label=f"ensemble of {COPIES[0]} to 20,000 copies",
    )
    for name, shown in NAMES.items():
        place = figures[f"{name}_row_ms"], figures[f"{name}_accuracy"]
        axes.plot(*place, "o", color=OURS if name == "good" else CONTROL)
        axes.annotate(shown, place, xytext=(0, 8), textcoords="offset points", ha="center")
    axes.margins(y=0.15)
    target(axes, DEADLINE_MS, f"deadline: {DEADLINE_MS} ms", across=True)
    return legend(figure)
