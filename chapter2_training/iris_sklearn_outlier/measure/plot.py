"""Draws the share of outliers in the metadata over `nu`, beside the mean that looks like it."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, lines
from tools.measure.results import Results


def furthest(asked: list[float], found: list[float]) -> float:
    return max(abs(one - other) for one, other in zip(asked, found, strict=True))


def draw(results: Results) -> Figure | None:
    series = results.series
    if not series:
        return None
    nu, named, means = (
        series[name] for name in ("nu_percent", "named_percent", "mean_of_labels_percent")
    )
    figure, axes = canvas(
        f"The share in the metadata is within {furthest(nu, named):.0f} points of nu; the mean of "
        f"scikit-learn's labels is up to {furthest(nu, means):.0f} points off",
        x="nu: the share of outliers asked for (%)",
        y="share of outliers reported (%)",
    )
    lines(
        axes,
        nu,
        ("in the metadata, as counted", named),
        ("mean of the labels 1 and -1", means),
    )
    axes.set_ylim(top=100)
    return legend(figure)
