"""Draws every pattern's plot from its results.json, all in one style.

A pattern whose claim has a shape over something has a `measure/plot.py` with a function
`draw(results)`, which returns a figure, or None if a quick measurement has not measured it.
"""

import hashlib
import io
import json
import runpy
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.measure.results import PLOT_FILE, Results, ResultsError, load
from tools.read.patterns import ROOT, patterns

# Relative to a pattern's directory.
PLOT_MODULE = Path("measure/plot.py")
# The background is opaque, so these can be told apart in dark mode, too.
BACKGROUND, TEXT = "#ffffff", "#1f2328"
OURS, CONTROL, TARGET = "#0550ae", "#767e86", "#a04100"
# GitHub shows a plot 600 to 840 pixels wide: half of its pixels, or more.
STYLE: Any = {
    "axes.edgecolor": TEXT,
    "axes.facecolor": BACKGROUND,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.dpi": 160,
    "figure.facecolor": BACKGROUND,
    "figure.figsize": (7.5, 4.2),
    "font.size": 13,
    "legend.frameon": False,
    "lines.linewidth": 2.5,
    "lines.markersize": 8,
    "savefig.dpi": "figure",
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}
TITLE_LETTERS = 66
# The value of a bar, in front of a line that crosses it.
VALUE: dict[str, Any] = {
    "fmt": "{:,.4g}",
    "padding": 5,
    "bbox": {"facecolor": BACKGROUND, "linewidth": 0, "pad": 1},
}


def canvas(title: str, x: str, y: str = "") -> tuple[Figure, Axes]:
    """Returns an empty figure; the title says in words what is seen in the plot.

    The label of the y axis is above it, where a long one can be read.
    """
    figure = Figure()
    figure.suptitle(
        textwrap.fill(title, TITLE_LETTERS), x=0.01, ha="left", weight="bold", size="medium"
    )
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_title(y, loc="left", size="medium")
    return figure, axes


def lines(
    axes: Axes,
    x: Sequence[float],
    ours: tuple[str, Sequence[float]],
    control: tuple[str, Sequence[float]],
) -> None:
    """Draws the pattern and its control as lines, each with its name."""
    axes.grid(alpha=0.25)
    for (name, y), colour, marker, layer in ((ours, OURS, "o", 4), (control, CONTROL, "s", 3)):
        axes.plot(x, y, marker=marker, color=colour, label=name, clip_on=False, zorder=layer)


def bars(axes: Axes, heights: dict[str, float], ours: Sequence[str]) -> None:
    """Draws a bar for each name, from top to bottom, with its value."""
    colours = [OURS if name in ours else CONTROL for name in heights]
    drawn = axes.barh(list(heights), list(heights.values()), color=colours)
    axes.bar_label(drawn, **VALUE)
    axes.invert_yaxis()
    axes.margins(x=0.1)


def pairs(
    axes: Axes,
    names: Sequence[str],
    ours: tuple[str, Sequence[float]],
    control: tuple[str, Sequence[float]],
) -> None:
    """Draws two bars for each name, from top to bottom: the pattern above its control."""
    places = range(len(names))
    for (name, values), colour, shift in ((ours, OURS, -0.2), (control, CONTROL, 0.2)):
        drawn = axes.barh(
            [place + shift for place in places], values, 0.36, color=colour, label=name
        )
        axes.bar_label(drawn, **VALUE)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.1)


def target(axes: Axes, bound: float, name: str, *, across: bool = False) -> None:
    """Draws the bound of a target as a dashed line; `across` the bars, or along the x axis."""
    draw = axes.axvline if across else axes.axhline
    draw(bound, color=TARGET, linestyle="--", linewidth=1.8, label=name)


def legend(figure: Figure) -> Figure:
    """Adds the names below the plot."""
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def plot_of(pattern: Path) -> bytes | None:
    """Returns the plot of a pattern's results, or None if there is nothing to draw.

    A plot that was drawn from the same results by the same code is returned as it is, because
    another processor may draw an edge a shade lighter.
    """
    module, path = pattern / PLOT_MODULE, pattern / PLOT_FILE
    try:
        results = load(pattern) if module.exists() else None
    except ResultsError:
        results = None
    if results is None:
        return None
    mark = mark_of(results, module.read_text("utf-8"))
    if path.exists() and mark.encode() in (current := path.read_bytes()):
        return current
    with rc_context(STYLE):
        figure = drawing_of(pattern, results)
        if figure is None:
            return None
        drawn = io.BytesIO()
        figure.savefig(drawn, metadata={"Software": None, "Source": mark})
    return drawn.getvalue()


def drawing_of(pattern: Path, results: Results) -> Figure | None:
    """Draws results with the code of a pattern, which may be in another repository."""
    figure: Figure | None = runpy.run_path(str(pattern / PLOT_MODULE))["draw"](results)
    return figure


def mark_of(results: Results, code: str) -> str:
    """Returns a digest of the results and of the code that draws them."""
    style = Path(__file__).read_text("utf-8")
    content = json.dumps([asdict(results), code, style], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def main() -> int:
    for pattern in patterns():
        path = pattern / PLOT_FILE
        drawn = plot_of(pattern)
        if drawn and (not path.exists() or path.read_bytes() != drawn):
            path.write_bytes(drawn)
            print(f"drew {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
