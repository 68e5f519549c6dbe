"""Draws the page with a drawn digit, beside the sizes and the times of a prediction."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from tools.measure.plot import bars, canvas
from tools.measure.results import Results

# A screenshot of the measurement.
PAGE = Path(__file__).with_name("page.png")
SIZES = {"full model": "full_kb", "int8 weights": "quantised_kb"}
TIMES = {"in the page": "browser_p50_ms", "asking a server": "server_call_p50_ms"}


def draw(results: Results) -> Figure | None:
    figures = results.figures
    if not figures.keys() >= {*SIZES.values(), *TIMES.values()} or not PAGE.exists():
        return None
    figure, unused = canvas(
        f"A page predicts in {figures['browser_p50_ms']:.2f} ms, offline, with a model "
        f"of {figures['quantised_kb']:.0f} kB",
        x="",
    )
    unused.remove()
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.9))
    page = figure.add_subplot(grid[:, 0])
    page.imshow(imread(PAGE))
    page.set(xticks=[], yticks=[], xlabel="the page, offline")
    page.spines[:].set_visible(False)
    for row, (title, names, ours) in enumerate(
        (
            ("size (kB)", SIZES, "int8 weights"),
            ("time of a prediction, median (ms)", TIMES, "in the page"),
        )
    ):
        axes = figure.add_subplot(grid[row, 1])
        axes.set_xlabel(title)
        bars(axes, {label: figures[name] for label, name in names.items()}, [ours])
        axes.margins(x=0.25)
    return figure
