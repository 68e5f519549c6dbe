"""Draws how many steps run again, with and without caching."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, pairs
from tools.measure.results import Results

CHANGES = {
    "nothing has changed": "steps_unchanged",
    "another parameter of fit": "steps_after_a_parameter_of_fit",
    "a kill in the middle of fit": "steps_after_a_kill_in_fit",
}


def draw(results: Results) -> Figure:
    counts, control = results.counts, results.control
    figure, axes = canvas(
        f"{counts['steps_unchanged']} of {counts['steps_first']} steps run again when nothing has "
        f"changed, and {counts['steps_after_a_parameter_of_fit']} when a parameter of fit has",
        x="steps that run again",
    )
    pairs(
        axes,
        list(CHANGES),
        ("this pattern", [counts[name] for name in CHANGES.values()]),
        ("without caching", [control[name] for name in CHANGES.values()]),
    )
    axes.set_xticks(range(counts["steps_first"] + 1))
    return legend(figure)
