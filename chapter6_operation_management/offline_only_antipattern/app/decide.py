# Copied from chapter6_operation_management/online_ab_pattern/app/decide.py
"""Decides by what both versions have achieved; reads and writes nothing.

Every pair is (old version, new version). Each number may be an array with one entry an experiment.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.special import lambertw
from scipy.stats import chi2, norm

# A number, or an array of them.
Number = Any
Pair = tuple[Number, Number]
# Of the split; so low because it is looked at all the time.
MISMATCH = 0.001
# Where less is expected, chi-square does not hold.
LEAST_EXPECTED = 5


class Effect(NamedTuple):
    """How much better the new version is, and how likely chance alone makes such a difference."""

    difference: Number
    low: Number
    high: Number
    p_value: Number


class Interval(NamedTuple):
    """Where the difference between the versions is."""

    low: Number
    high: Number


def sample_size(
    baseline: float, least_effect: float, share: float, alpha: float, power: float
) -> tuple[int, int]:
    """Returns how many users each version needs, if the new one gets this share of them.

    Source: Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions, 3rd edition
    (2003), chapter 4: the pooled test of two proportions, without correction for continuity.
    """
    old, new = baseline, baseline + least_effect
    mean = (1 - share) * old + share * new
    chance = norm.isf(alpha / 2) * np.sqrt(mean * (1 - mean) / (share * (1 - share)))
    missed = norm.isf(1 - power) * np.sqrt(old * (1 - old) / (1 - share) + new * (1 - new) / share)
    users = ((chance + missed) / least_effect) ** 2
    return round(users * (1 - share)), round(users * share)


def ratio_mismatch(counts: Pair, weights: Pair) -> Number:
    """Returns how likely chance alone splits users so unevenly: below MISMATCH, something is wrong.

    Source: Pearson's chi-square (1900), as a check of experiments: Fabijan et al., Diagnosing
    Sample Ratio Mismatch in Online Controlled Experiments, KDD 2019; nothing is said before five
    users are expected of each version: Cochran, Biometrics 10 (1954).
    """
    seen = np.stack([np.asarray(count, float) for count in counts], axis=-1)
    expected = seen.sum(axis=-1, keepdims=True) * np.asarray(weights) / sum(weights)
    distance = ((seen - expected) ** 2 / np.maximum(expected, LEAST_EXPECTED)).sum(axis=-1)
    return np.where(expected.min(axis=-1) < LEAST_EXPECTED, 1.0, chi2.sf(distance, df=1))


def effect(successes: Pair, users: Pair, planned: tuple[int, int], alpha: float) -> Effect | None:
    """Returns the test and the interval at the planned size, and None at any other.

    Sources: the pooled z-test of two proportions: Fleiss, Levin and Paik (2003), chapter 3; the
    interval: Newcombe, Statistics in Medicine 17 (1998), pages 873-890, method 10.
    """
    if users != planned:
        return None
    old, new = (np.divide(have, out_of) for have, out_of in zip(successes, users, strict=True))
    pooled = (successes[0] + successes[1]) / (users[0] + users[1])
    error = np.sqrt(pooled * (1 - pooled) * (1 / users[0] + 1 / users[1]))
    # If all users did the same, there is neither an error nor a difference.
    p_value = 2 * norm.sf(np.abs(new - old) / np.maximum(error, np.finfo(float).tiny))
    old_low, old_high = wilson(old, users[0], alpha)
    new_low, new_high = wilson(new, users[1], alpha)
    return Effect(
        new - old,
        new - old - np.hypot(new - new_low, old_high - old),
        new - old + np.hypot(new_high - new, old - old_low),
        p_value,
    )


def wilson(share: Number, users: int, alpha: float) -> Interval:
    """Returns the interval of one share: Wilson, J. Am. Stat. Assoc. 22 (1927), 209-212."""
    z = norm.isf(alpha / 2)
    middle = (share + z**2 / (2 * users)) / (1 + z**2 / users)
    half = z * np.sqrt(share * (1 - share) / users + z**2 / (4 * users**2)) / (1 + z**2 / users)
    return Interval(middle - half, middle + half)


def always_valid(successes: Pair, users: Pair, planned: int, alpha: float) -> Interval:
    """Returns an interval that may be watched all the time; narrowest at the planned size.

    Sources: the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas,
    Annals of Statistics 52 (2024), theorem 2.2; where it is narrowest: Howard, Ramdas, McAuliffe
    and Sekhon, Annals of Statistics 49 (2021), proposition 3. One success and one failure more in
    the variance keep the first few users from looking certain: Agresti and Caffo, The American
    Statistician 54 (2000).
    """
    share, variance = [], 0.0
    for have, out_of in zip(successes, users, strict=True):
        smooth = (np.asarray(have, float) + 1) / (np.asarray(out_of, float) + 2)
        share.append(np.divide(have, np.maximum(out_of, 1)))
        variance = variance + smooth * (1 - smooth) / np.maximum(out_of, 1)
    narrowest = -lambertw(-(alpha**2) / np.e, -1).real - 1
    x = np.maximum(users[0] + users[1], 1) * narrowest / planned
    half = np.sqrt(variance * 2 * (x + 1) / x * np.log(np.sqrt(x + 1) / alpha))
    # Nobody knows anything of a version without a user.
    half = np.where(np.minimum(*users) > 0, half, 2.0)
    difference = share[1] - share[0]
    return Interval(np.maximum(difference - half, -1.0), np.minimum(difference + half, 1.0))
