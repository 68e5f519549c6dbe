"""Measures the claim: what was answered is written down once, whatever is killed."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.measure.results import Results, quick_argument

from ..train.__main__ import write
from .counts import FULL, QUICK, claim_holds, count
from .processes import HERE, Database
from .times import measure_times

CLAIM = "Every answered prediction is stored once, whatever is killed, and loss is counted."
TARGETS: dict[str, tuple[str, float]] = {
    "missing": ("==", 0),
    "twice": ("==", 0),
    "events_unjoined": ("==", 0),
    "replayed_unequal": ("==", 0),
    "unaccounted_when_full": ("==", 0),
    "cpu_ratio_to_unlogged": ("<=", 1.15),
    "p99_ratio_to_unlogged": ("<=", 1.3),
    "append_us": ("<=", 10),
    "shipped_per_second": (">=", 10_000),
    "ship_ratio_to_row_by_row": (">=", 20),
    "queryable_p99_ms": ("<=", 1_000),
    "catch_up_seconds": ("<=", 5),
    "bytes_per_record": ("<=", 400),
}


def main() -> int:
    arguments = quick_argument(__doc__)
    size = QUICK if arguments.quick else FULL
    with TemporaryDirectory() as name, Database() as database:
        models, other = Path(name) / "models", Path(name) / "other"
        write(models)
        write(other, seed=1)
        counts, control = count(size, database, models, other, Path(name))
        figures: dict[str, float] = {}
        if not arguments.quick:
            figures = measure_times(Path(name), models, database)
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        figures=figures,
        control=control,
        targets={name: target for name, target in TARGETS.items() if name in counts | figures},
        holds=claim_holds(counts, size) and all(control.values()),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
