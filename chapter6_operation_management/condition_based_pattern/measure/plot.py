"""Draws how often the routed models and a single one are right."""

from matplotlib.figure import Figure

from tools.measure.plot import bars, canvas
from tools.measure.results import Results

NAMES = {
    "accuracy_routed": "routed",
    "accuracy_with_condition": "one model that sees the condition",
    "accuracy_global": "one model for all",
    "accuracy_misrouted": "routed wrongly",
}


def draw(results: Results) -> Figure | None:
    if not NAMES.keys() <= results.figures.keys():
        return None
    errors = {name: 100 * (1 - results.figures[figure]) for figure, name in NAMES.items()}
    figure, axes = canvas(
        f"One model for all is wrong {errors['one model for all'] / errors['routed']:.2g} times as "
        "often as routed models, and a wrong route is worse than either",
        x="test rows with a wrong label (%)",
    )
    bars(axes, errors, ours=["routed"])
    return figure
