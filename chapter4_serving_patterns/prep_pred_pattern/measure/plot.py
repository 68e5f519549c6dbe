"""Draws how much throughput a second prep and a second pred add, under two kinds of load."""

from matplotlib.figure import Figure

from tools.measure.plot import canvas, legend, pairs
from tools.measure.results import Results


def draw(results: Results) -> Figure | None:
    figures = results.figures
    if "double_prep_ratio" not in figures:
        return None
    preps, preds = (
        [figures[f"double_{part}_ratio"], figures[f"double_{part}_ratio_heavy"]]
        for part in ("prep", "pred")
    )
    figure, axes = canvas(
        f"With photos of 3 megapixels, a second prep gives {preps[0]:.2g} times the throughput; "
        f"with a heavy model, a second pred gives {preds[1]:.2g} times",
        x="throughput relative to one of each",
    )
    names = ["large photos, light model", "small photos, heavy model"]
    pairs(axes, names, ("two preps", preps), ("two preds", preds))
    return legend(figure)
