"""Judges windows in this process: how often chance alarms, and how soon a fault is noticed."""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy.stats import ks_2samp

from ..app.callers import FAULTS, draw, load
from ..app.judge import Check, Sample, judge, speaking
from ..app.model import Model
from ..app.outlier import OutlierModel
from ..app.settings import Settings

BASELINE_ROWS = 1_000
# As many windows are judged by one baseline.
WINDOWS_OF_BASELINE = 20
WINDOWS_OF_FAULT = 3
OUTCOMES = Settings().outcome_share
# The check that has to notice each fault.
CHECKS = {
    "scale": "inputs",
    "shift": "inputs",
    "vanish": "labels",
    "outliers": "outliers",
    "mix": "outliers",
    "swap": "accuracy",
    "repeat": "repeats",
}
Alarm = Callable[[Sample, Sample], bool]


class World:
    """Simulated callers and the models that answer them."""

    def __init__(self, models: Path, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.iris = load(models)
        self.model = Model(models, self.iris.rows.shape[1])
        self.outlier = OutlierModel(models / "outlier", self.model.sample)

    def sample(self, count: int, fault: str | None = None) -> Sample:
        drawn = draw(self.random, self.iris, count)
        if fault:
            drawn = FAULTS[fault](self.random, self.iris, drawn)
        rows = drawn.rows.tolist()
        labels = [self.model.labels[index] for index in self.model.predict(rows).argmax(axis=1)]
        is_told = self.random.random(count) < OUTCOMES
        right = int((np.array(labels) == drawn.labels)[is_told].sum())
        is_outlier = (self.outlier.score(rows) < 0).tolist()
        return Sample(drawn.rows, labels, is_outlier, right, int(is_told.sum()) - right)

    def training_rows(self) -> Sample:
        """Returns 105 flowers, as many as a training has, instead of predictions."""
        picked = self.random.permutation(len(self.iris.rows))[:105]
        rows = self.iris.rows[picked]
        labels = self.iris.labels[picked].tolist()
        return Sample(rows, labels, (self.outlier.score(rows.tolist()) < 0).tolist())


def count_false_alarms(world: World, windows: int, rows: int) -> tuple[int, int]:
    """Counts clean windows in which a check speaks, and those that the rule of 5 % reports."""
    alarms = by_mean = 0
    previous: list[Check] = []
    for number in range(windows):
        if number % WINDOWS_OF_BASELINE == 0:
            baseline, previous = world.sample(BASELINE_ROWS), []
        window = world.sample(rows)
        checks = judge(window, baseline)
        alarms += bool(speaking(checks, previous))
        by_mean += mean_is_off(window, baseline)
        previous = checks
    return alarms, by_mean


class Noticed(NamedTuple):
    """How often a fault is noticed by its own check, and after how many windows."""

    share: float
    median_windows: float


def notice(
    world: World, fault: str, rows: int, tries: int, baseline_of: Callable[[], Sample] | None = None
) -> Noticed:
    """Plants a fault several times, each against another baseline."""
    windows = []
    for _ in range(tries):
        baseline = baseline_of() if baseline_of else world.sample(BASELINE_ROWS)
        previous: list[Check] = []
        for number in range(1, WINDOWS_OF_FAULT + 1):
            checks = judge(world.sample(rows, fault), baseline)
            if CHECKS[fault] in speaking(checks, previous):
                windows.append(number)
                break
            previous = checks
    return Noticed(len(windows) / tries, median(windows) if windows else float("inf"))


# --- what others do -------------------------------------------------------------------------------


def mean_is_off(window: Sample, baseline: Sample) -> bool:
    """The mean of a feature is more than 5 % away, whatever the number of rows."""
    before, now = baseline.rows.mean(axis=0), window.rows.mean(axis=0)
    return bool((np.abs(now / before - 1) > 0.05).any())


def z_is_high(window: Sample, baseline: Sample) -> bool:
    """A z-test of the means at 0.001 that takes mean and deviation of the baseline as exact."""
    error = baseline.rows.std(axis=0) / len(window.rows) ** 0.5
    z = np.abs(window.rows.mean(axis=0) - baseline.rows.mean(axis=0)) / error
    return bool((z > 3.29).any())


def psi_is_high(window: Sample, baseline: Sample) -> bool:
    """The population stability index of a feature over deciles is above 0.2."""
    for before, now in zip(baseline.rows.T, window.rows.T, strict=True):
        edges = np.unique(np.quantile(before, np.arange(0.1, 1, 0.1)))
        shares = [
            np.maximum(np.bincount(np.digitize(each, edges), minlength=len(edges) + 1), 0.5)
            / len(each)
            for each in (now, before)
        ]
        if ((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum() > 0.2:
            return True
    return False


def half_differ(window: Sample, baseline: Sample) -> bool:
    """Half of the features differ at 0.05 by Kolmogorov-Smirnov, which is Evidently's default."""
    pairs = zip(window.rows.T, baseline.rows.T, strict=True)
    differ = [ks_2samp(*pair, method="asymp").pvalue < 0.05 for pair in pairs]
    return bool(2 * sum(differ) >= len(differ))


def share_of_alarms(world: World, alarm: Alarm, windows: int, rows: int) -> float:
    """Returns how many clean windows alarm, if training rows are the baseline."""
    return sum(alarm(world.sample(rows), world.training_rows()) for _ in range(windows)) / windows
