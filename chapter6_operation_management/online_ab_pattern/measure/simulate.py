"""Simulates experiments whose truth is known, and counts what is decided about them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..app.decide import MISMATCH, always_valid, effect, ratio_mismatch, sample_size

ALPHA, POWER = 0.05, 0.85
EXPERIMENTS, LOOKS = 1_000, 20
SPLITS, USERS = 2_000, 4_000
Counts = dict[str, int]


class Design(NamedTuple):
    """The truth that an experiment is planned for."""

    baseline: float
    least_effect: float
    share: float

    def planned(self, power: float = POWER) -> tuple[int, int]:
        return sample_size(self.baseline, self.least_effect, self.share, ALPHA, power)


DESIGNS = [
    Design(baseline, least_effect, share)
    for baseline, least_effect in ((0.9, 0.05), (0.1, 0.02))
    for share in (0.5, 0.1)
]


# A size that is often quoted for .90 to .95 at 90 to 10.
QUOTED_FOR, QUOTED = Design(0.9, 0.05, 0.1), (1_624, 180)


def count_splits(seed: int = 0) -> tuple[Counts, Counts]:
    """Counts flagged splits that should be 90 to 10: fair ones, and 12 or 15 of 100 for 10.

    The controls: what is off by more than a point is flagged, and nothing is.
    """
    chance = np.random.default_rng(seed)
    counts, control = {}, {"biased_splits_flagged": 0, "strongly_biased_splits_flagged": 0}
    for name, share in (("fair", 0.1), ("biased", 0.12), ("strongly_biased", 0.15)):
        new = chance.binomial(USERS, share, SPLITS)
        p_values = ratio_mismatch((USERS - new, new), (90, 10))
        counts[f"{name}_splits_flagged"] = int((p_values < MISMATCH).sum())
        if name == "fair":
            control["fair_splits_flagged"] = int((abs(new / USERS - 0.1) > 0.01).sum())
    return counts, control


class Course(NamedTuple):
    """Successes and users of both versions, [looks, experiments] each."""

    successes: tuple[NDArray[np.int64], NDArray[np.int64]]
    users: tuple[NDArray[np.int64], NDArray[np.int64]]


def run(design: Design, effect_is: float, planned: tuple[int, int], seed: int) -> Course:
    """Simulates experiments to their planned size, and looks at them at equal intervals."""
    chance = np.random.default_rng(seed)
    have, out_of = [], []
    for users, rate in zip(planned, (design.baseline, design.baseline + effect_is), strict=True):
        at = (users * np.arange(1, LOOKS + 1) // LOOKS)[:, None]
        came = np.diff(at, axis=0, prepend=0)
        have.append(chance.binomial(came, rate, (LOOKS, EXPERIMENTS)).cumsum(axis=0))
        out_of.append(np.broadcast_to(at, (LOOKS, EXPERIMENTS)))
    return Course((have[0], have[1]), (out_of[0], out_of[1]))


def found_at_the_end(course: Course, planned: tuple[int, int]) -> int:
    old, new = course.successes
    found = effect((old[-1], new[-1]), planned, planned, ALPHA)
    return int((found.p_value < ALPHA).sum()) if found else 0


def found_while_watching(course: Course, planned: tuple[int, int]) -> NDArray[np.bool_]:
    """Tells of each look at each experiment whether there seems to be an effect."""
    interval = always_valid(course.successes, course.users, sum(planned), ALPHA)
    seen: NDArray[np.bool_] = (interval.low > 0) | (interval.high < 0)
    return seen


def count_experiments(seed: int = 1) -> tuple[Counts, Counts]:
    """Counts effects that are found and, where there is none, false ones: the worst design.

    The controls: a size that is often quoted, and the test at each look instead of once.
    """
    found, false, watched, peeked = [], [], [], []
    for design in DESIGNS:
        planned = design.planned()
        found.append(found_at_the_end(run(design, design.least_effect, planned, seed), planned))
        same = run(design, 0.0, planned, seed + 1)
        false.append(found_at_the_end(same, planned))
        watched.append(int(found_while_watching(same, planned).any(axis=0).sum()))
        peeked.append(int(np.any([peek(same, look) for look in range(LOOKS)], axis=0).sum()))
    counts = {
        "effects_found": min(found),
        "aa_flagged": max(false),
        "aa_flagged_while_watching": max(watched),
    }
    quoted = run(QUOTED_FOR, QUOTED_FOR.least_effect, QUOTED, seed)
    return counts, {
        "effects_found": found_at_the_end(quoted, QUOTED),
        "aa_flagged": min(peeked),
        "aa_flagged_while_watching": min(peeked),
    }


def peek(course: Course, look: int) -> NDArray[np.bool_]:
    """Applies the test for the planned size at a look, as if that were the plan."""
    (old, new), users = course.successes, tuple(int(each[look, 0]) for each in course.users)
    found = effect((old[look], new[look]), (users[0], users[1]), (users[0], users[1]), ALPHA)
    flagged: NDArray[np.bool_] = np.asarray(found is not None and found.p_value < ALPHA)
    return flagged


def measure_watching(seed: int = 3) -> dict[str, float]:
    """Returns what watching costs in power, and how early it finds harm."""
    design = Design(0.9, 0.05, 0.5)
    planned = design.planned(power=0.8)
    helped = run(design, design.least_effect, planned, seed)
    harmed = found_while_watching(run(design, -0.3, planned, seed + 1), planned)
    first = np.where(harmed.any(axis=0), harmed.argmax(axis=0) + 1, 2 * LOOKS)
    return {
        "power_at_the_planned_size": found_at_the_end(helped, planned) / EXPERIMENTS,
        "power_while_watching": float(found_while_watching(helped, planned).any(axis=0).mean()),
        "harm_found_at_share_of_n": float(first.mean() / LOOKS),
    }


def series_of_looks(seed: int = 5) -> dict[str, list[float]]:
    """Returns how many of 100 experiments without an effect are flagged up to each look."""
    design = Design(0.9, 0.05, 0.5)
    planned = design.planned()
    same = run(design, 0.0, planned, seed)
    flags = {
        "watched_percent": found_while_watching(same, planned),
        "tested_each_time_percent": np.array([peek(same, look) for look in range(LOOKS)]),
    }
    return {"looks": [float(look) for look in range(1, LOOKS + 1)]} | {
        name: (100 * np.logical_or.accumulate(flag, axis=0).mean(axis=1)).tolist()
        for name, flag in flags.items()
    }
