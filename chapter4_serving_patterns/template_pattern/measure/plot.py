"""Draws how much of the contract each release of the template keeps."""

from matplotlib.figure import Figure

from tools.measure.plot import bars, canvas, legend, target
from tools.measure.results import Results

CLAUSES = 24
# In the order of the series.
RELEASES = (
    "compatible v2",
    "a renamed field",
    "the first row only",
    "labels as a list",
    "400 instead of 422",
    "NaN accepted",
    "no /ready",
)


def draw(results: Results) -> Figure | None:
    kept = dict(zip(RELEASES, results.series["clauses_kept"], strict=True))
    figure, axes = canvas(
        f"contract.py catches all {results.counts['breaking_changes_caught']} breaking changes of "
        "a template; to a health check every release is fine",
        x="clauses of the contract that a service keeps",
    )
    bars(axes, kept, RELEASES[:1])
    target(axes, CLAUSES, f"all {CLAUSES}", across=True)
    return legend(figure)
