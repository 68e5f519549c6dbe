"""Draws the response times over the offered rate, beside the objective."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines, target
from tools.measure.results import Results

OBJECTIVE_P99_MS = 250


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    rates, p50, p99 = (series[name] for name in ("rate_per_second", "p50_ms", "p99_ms"))
    highest = results.figures["highest_rate_per_second"]
    capacity = results.figures["closed_loop_capacity_per_second"]
    figure, axes = canvas(
        f"The objective holds up to {highest:.0f} requests per second, "
        f"{highest / capacity:.0%} of what ten callers in a closed loop get answered",
        x="requests offered per second",
        y="response time from the schedule (ms)",
    )
    lines(axes, rates, ("99th percentile", p99), ("median", p50))
    target(axes, OBJECTIVE_P99_MS, f"objective: {OBJECTIVE_P99_MS} ms")
    axes.set_ylim(bottom=0)
    return legend(figure)
