"""Draws how often the versions agree with the live one, and the bound of the rule."""

from matplotlib.figure import Figure

from tools.measure.plot import bars, canvas, legend, target
from tools.measure.results import Results

NAMES = {
    "agreement": "a good forest",
    "agreement_never": "one class never",
    "agreement_shuffled": "labels shuffled",
}
BOUND = 0.95


def draw(results: Results) -> Figure | None:
    if not NAMES.keys() <= results.figures.keys():
        return None
    heights = {name: 100 * results.figures[figure] for figure, name in NAMES.items()}
    figure, axes = canvas(
        "The shadow's answers tell a bad version from a good one before anybody sees them",
        x="requests with the same label from both versions (%)",
    )
    bars(axes, heights, ours=["a good forest"])
    target(axes, 100 * BOUND, "least agreement by the rule", across=True)
    return legend(figure)
