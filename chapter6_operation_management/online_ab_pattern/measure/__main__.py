"""Measures the claim: users stay, events are joined, and verdicts are as wrong as planned."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.measure.results import MEETS, Results, quick_argument

from ..train.__main__ import write
from .counts import count
from .processes import HERE, Database
from .simulate import (
    EXPERIMENTS,
    SPLITS,
    count_experiments,
    count_splits,
    measure_watching,
    series_of_looks,
)
from .times import measure_times

CLAIM = (
    "No simulated user changes the version within a step, no event is lost, a test at its planned "
    "size is wrong as often as planned, and nobody gets a failing version after the switch."
)
USERS, FEW_USERS = 4_000, 400
COUNTED: dict[str, tuple[str, float]] = {
    "users_that_changed_arm": ("==", 0),
    "moved_back_on_a_raise": ("==", 0),
    "events_unjoined": ("==", 0),
    "fair_splits_flagged": ("<=", 0.003 * SPLITS),
    "biased_splits_flagged": (">=", 0.75 * SPLITS),
    "strongly_biased_splits_flagged": ("==", SPLITS),
    "effects_found": (">=", 0.8 * EXPERIMENTS),
    "aa_flagged": ("<=", 0.065 * EXPERIMENTS),
    "aa_flagged_while_watching": ("<=", 0.05 * EXPERIMENTS),
    "harmed_after_the_switch": ("==", 0),
}
MEASURED: dict[str, tuple[str, float]] = {
    "switch_seconds": ("<=", 2),
    "harm_found_at_share_of_n": ("<=", 0.3),
    "mesh_p99_ratio": ("<=", 1.3),
}


def main() -> int:
    arguments = quick_argument(__doc__)
    splits, of_splits = count_splits()
    experiments, of_experiments = count_experiments()
    figures: dict[str, float] = {}
    with TemporaryDirectory() as name, Database() as database:
        models = Path(name) / "models"
        write(models)
        size = FEW_USERS if arguments.quick else USERS
        counts, control, harm = count(size, database, models, Path(name))
        if not arguments.quick:
            figures = {
                "switch_seconds": harm.seconds,
                "harmed_requests": harm.requests,
                **measure_watching(),
                **measure_times(database, models, Path(name)),
            }
    counts |= splits | experiments
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control | of_splits | of_experiments,
        figures=figures,
        targets=COUNTED | (MEASURED if figures else {}),
        series=series_of_looks(),
        holds=all(MEETS[sign](counts[name], bound) for name, (sign, bound) in COUNTED.items()),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
