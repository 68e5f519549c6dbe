"""Draws how often rules alarm though nothing has changed."""

from matplotlib.figure import Figure

from tools.measure.plot import bars, canvas
from tools.measure.results import Results

OURS = "two windows in a row, p < 0.001 (this pattern)"
RULES = {
    "a population stability index above 0.2": "psi_share",
    "a mean that is 5 % away": "mean_5_percent_share",
    "half of the features at 0.05": "half_of_features_share",
    "a z-test at 0.001": "z_test_share",
}


def draw(results: Results) -> Figure | None:
    figures = results.figures
    if not figures.keys() >= set(RULES.values()):
        return None
    ours = results.counts["false_alarms"] / results.counts["clean_windows"]
    shares = {rule: figures[name] for rule, name in RULES.items()} | {OURS: ours}
    figure, axes = canvas(
        f"A rule about the mean alarms in {figures['mean_5_percent_share']:.0%} of clean windows",
        x="clean windows that alarm (%)",
    )
    bars(axes, {rule: 100 * share for rule, share in shares.items()}, [OURS])
    return figure
