"""Draws the response time over the share of requests that were seen before."""

from matplotlib.figure import Figure

from tools.measure.plot import OURS, canvas, legend, lines
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    percent, median, mean = (series[name] for name in ("hit_percent", "p50_ms", "mean_ms"))
    uncached = series["uncached_p50_ms"]
    figure, axes = canvas(
        f"A repeated request takes {median[-1]:.2g} ms instead of {uncached[-1]:.2g} ms, "
        "so the mean falls with the share of repeats",
        x="requests that were sent before (%)",
        y="response time of POST /predict (ms)",
    )
    lines(axes, percent, ("median", median), ("median without the cache", uncached))
    axes.plot(percent, mean, color=OURS, linestyle=":", label="mean")
    axes.set_ylim(bottom=0)
    return legend(figure)
