"""Draws throughput and latency over the number of callers that wait."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    callers, per_second, mean_ms = (series[name] for name in ("callers", "per_second", "mean_ms"))
    throughput = [each / per_second[0] for each in per_second]
    latency = [each / mean_ms[0] for each in mean_ms]
    figure, axes = canvas(
        f"{callers[-1]:.0f} callers get {throughput[-1]:.2g} times as many predictions as one, and "
        f"each waits {latency[-1]:.2g} times as long",
        x="callers that wait at the same time",
        y="relative to one caller",
    )
    lines(axes, callers, ("predictions per second", throughput), ("time to wait", latency))
    axes.set_xticks(callers)
    axes.set_ylim(bottom=0)
    return legend(figure)
