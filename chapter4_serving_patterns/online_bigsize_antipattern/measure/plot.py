"""Draws the accuracy of each model over the time for one row, and the deadline."""

from matplotlib.figure import Figure

from tools.measure.plot import CONTROL, OURS, canvas, legend, target
from tools.measure.results import Results

DEADLINE_MS = 100
NAMES = {"good": "SVC", "regression": "regression", "forest": "forest", "bad": "ensemble"}


def draw(results: Results) -> Figure | None:
    figures = results.figures
    if "bad_row_ms" not in figures:
        return None
    slower = figures["bad_row_ms"] / figures["good_row_ms"]
    points = 100 * (figures["good_accuracy"] - figures["bad_accuracy"])
    figure, axes = canvas(
        f"{slower:.0f} times the time, {points:.1f} points less accuracy",
        x="time for one row (ms)",
        y="accuracy on the 540 test rows",
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.plot(
        results.series["copies_row_ms"],
        results.series["copies_accuracy"],
        marker=".",
        color=CONTROL,
        label="ensemble of 1 to 20,000 copies",
    )
    for name, shown in NAMES.items():
        place = figures[f"{name}_row_ms"], figures[f"{name}_accuracy"]
        axes.plot(*place, "o", color=OURS if name == "good" else CONTROL)
        # On the left, the name of the big model would lie on the deadline.
        where = (6, "left") if name == "bad" else (0, "center")
        axes.annotate(shown, place, (where[0], 8), textcoords="offset points", ha=where[1])
    axes.margins(x=0.15, y=0.15)
    target(axes, DEADLINE_MS, f"deadline: {DEADLINE_MS} ms", across=True)
    return legend(figure)
