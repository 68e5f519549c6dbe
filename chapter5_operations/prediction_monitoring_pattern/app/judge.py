"""Compares a window of predictions with a baseline; reads and writes nothing."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, fisher_exact, ks_2samp

# Fewer say nothing about a share or a distribution.
MIN_ROWS = 60
MIN_OUTCOMES = 20
# How often chance alone makes a check alarm in one window.
ALPHA = 0.001


class Sample(NamedTuple):
    """Rows [rows, features] with what was predicted for each, and how many outcomes were right."""

    rows: NDArray[np.float64]
    labels: list[str]
    is_outlier: list[bool]
    right: int = 0
    wrong: int = 0


class Check(NamedTuple):
    """How likely chance alone explains a difference; None if there is too little data."""

    name: str
    p_value: float | None
    # What differs most, for a person who looks for the cause.
    detail: str = ""


def judge(window: Sample, baseline: Sample) -> list[Check]:
    """Returns one result for each check."""
    enough = min(len(window.rows), len(baseline.rows)) >= MIN_ROWS
    known = min(outcomes(window), outcomes(baseline)) >= MIN_OUTCOMES
    checks = {"inputs": inputs, "labels": labels, "outliers": outliers, "repeats": repeats}
    judged = [
        check(window, baseline) if enough else Check(name, None) for name, check in checks.items()
    ]
    return [*judged, accuracy(window, baseline) if known else Check("accuracy", None)]


def inputs(window: Sample, baseline: Sample) -> Check:
    """Kolmogorov-Smirnov for each feature; the least p-value, times their number."""
    pairs = zip(ordered(window.rows).T, ordered(baseline.rows).T, strict=True)
    p_values = [float(ks_2samp(*pair, method="asymp").pvalue) for pair in pairs]
    feature = int(np.argmin(p_values))
    return Check("inputs", min(1.0, len(p_values) * p_values[feature]), f"feature {feature}")


def labels(window: Sample, baseline: Sample) -> Check:
    """Chi-square of how often each label is predicted."""
    now, before = Counter(window.labels), Counter(baseline.labels)
    names = sorted(now | before)
    if len(names) == 1:
        return Check("labels", 1.0)
    table = [[counts[name] for name in names] for counts in (now, before)]
    shares = {name: now[name] / now.total() - before[name] / before.total() for name in names}
    changed = max(names, key=lambda name: abs(shares[name]))
    p_value = float(chi2_contingency(table).pvalue)
    return Check("labels", p_value, f"{changed} {shares[changed]:+.0%}")


def outliers(window: Sample, baseline: Sample) -> Check:
    """Fisher's exact test of whether more rows are outliers; it notices broken correlations too."""
    now, before = sum(window.is_outlier), sum(baseline.is_outlier)
    p_value = more(now, len(window.rows), before, len(baseline.rows))
    return Check("outliers", p_value, f"{now / len(window.rows):.0%} of the rows")


def repeats(window: Sample, baseline: Sample) -> Check:
    """Fisher's exact test of the most frequent row, times the number of different rows."""
    distinct, counts = np.unique(ordered(window.rows), axis=0, return_counts=True)
    row, count = distinct[counts.argmax()], int(counts.max())
    before = int((ordered(baseline.rows) == row).all(axis=1).sum())
    p_value = more(count, len(window.rows), before, len(baseline.rows))
    return Check("repeats", min(1.0, len(distinct) * p_value), f"one row {count} times")


def accuracy(window: Sample, baseline: Sample) -> Check:
    """Fisher's exact test of whether more predictions turned out to be wrong."""
    p_value = more(window.wrong, outcomes(window), baseline.wrong, outcomes(baseline))
    return Check("accuracy", p_value, f"{window.right} of {outcomes(window)} right")


def outcomes(sample: Sample) -> int:
    return sample.right + sample.wrong


def more(now: int, of_now: int, before: int, of_before: int) -> float:
    """Returns the p-value of a share that is not larger than it was."""
    table = [[now, of_now - now], [before, of_before - before]]
    return float(fisher_exact(table, alternative="greater").pvalue)


def ordered(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Puts NaN below every number, because a missing value is a difference as well."""
    return np.where(np.isnan(rows), -np.inf, rows)


def speaking(last: list[Check], previous: list[Check]) -> set[str]:
    """Names the checks that found a difference in two windows in a row."""
    found = [
        {check.name for check in checks if check.p_value is not None and check.p_value < ALPHA}
        for checks in (last, previous)
    ]
    return found[0] & found[1]
