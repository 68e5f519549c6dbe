"""Draws the responses in time over the requests sent, both relative to the capacity."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines, target
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    load, ours = series["load_percent"], series["goodput_percent"]
    without = series["unlimited_goodput_percent"]
    figure, axes = canvas(
        f"At {load[-1] / 100:g} times the capacity, the limit keeps {ours[-1]:.0f} % of the "
        f"throughput; without it {without[-1]:.0f} % is left",
        x="requests sent (% of the capacity)",
        y="requests answered within a second (% of the capacity)",
    )
    lines(axes, load, ("this pattern", ours), ("without the limit", without))
    if "goodput_ratio_to_capacity" in results.targets:
        _, bound = results.targets["goodput_ratio_to_capacity"]
        target(axes, 100 * bound, f"target: {100 * bound:.0f} %")
    axes.set_ylim(bottom=0)
    return legend(figure)
