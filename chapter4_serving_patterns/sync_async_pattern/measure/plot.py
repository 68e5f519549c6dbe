"""Draws how long first and second answers take over how long the heavy model takes."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    model_ms, first_ms, second_ms = (
        series[name] for name in ("model_ms", "first_p99_ms", "second_p50_ms")
    )
    figure, axes = canvas(
        f"With a heavy model that does ten times as much, the first answer takes "
        f"{first_ms[-1] / first_ms[0]:.2g} times as long, the second "
        f"{second_ms[-1] / second_ms[0]:.2g} times",
        x="time that the heavy model takes per row (ms, logarithmic)",
        y="time to the answer (ms, logarithmic)",
    )
    axes.set(xscale="log", yscale="log")
    lines(
        axes,
        model_ms,
        ("first answer, 99th percentile", first_ms),
        ("second answer, median", second_ms),
    )
    axes.set_xticks(model_ms, [f"{each:.0f}" for each in model_ms])
    axes.set_yticks([1, 10, 100, 1_000], ["1", "10", "100", "1,000"])
    axes.minorticks_off()
    return legend(figure)
