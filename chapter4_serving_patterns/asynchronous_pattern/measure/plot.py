"""Draws how long a caller waits over how long the model takes."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines, target
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    model_ms, ack_ms, sync_ms = (series[name] for name in ("model_ms", "ack_p99_ms", "sync_p99_ms"))
    figure, axes = canvas(
        f"With a model {model_ms[-1] / model_ms[0]:.0f} times slower, accepting a job takes "
        f"{ack_ms[-1] / ack_ms[0]:.2g} times as long, waiting for its prediction "
        f"{sync_ms[-1] / sync_ms[0]:.0f} times",
        x="time that the model takes per row (ms, logarithmic)",
        y="99th percentile of the response time of POST /predict (ms, logarithmic)",
    )
    axes.set(xscale="log", yscale="log")
    lines(axes, model_ms, ("this pattern", ack_ms), ("the caller waits", sync_ms))
    if "ack_p99_ratio" in results.targets:
        _, bound = results.targets["ack_p99_ratio"]
        target(axes, bound * ack_ms[0], f"target: {bound:g} times the fastest")
    axes.set_xticks(model_ms, [f"{each:.0f}" for each in model_ms])
    axes.set_yticks([1, 10, 100, 1_000], ["1", "10", "100", "1,000"])
    axes.minorticks_off()
    return legend(figure)
