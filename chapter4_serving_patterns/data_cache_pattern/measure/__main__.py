"""Measures the claim: each picture is fetched and prepared once per version."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.measure.results import Results, quick_argument

from .counts import FULL, QUICK, claim_holds, count
from .processes import HERE
from .times import measure

CLAIM = (
    "Each picture is fetched and prepared once per version, the model predicts every request, and "
    "no answer is of a former picture."
)


def main() -> int:
    arguments = quick_argument(__doc__)
    size = QUICK if arguments.quick else FULL
    with TemporaryDirectory() as name:
        counts, control = count(Path(name) / "counts", size)
        figures = {} if arguments.quick else measure(Path(name) / "times")
    targets: dict[str, tuple[str, float]] = {
        "pictures_read": ("==", size.distinct),
        "prepared": ("==", size.distinct),
        "rows_predicted": ("==", size.ids_sent),
        "answers_equal": ("==", size.ids_sent),
        "stale_answers": ("==", 0),
        "answers_older_than_ttl": ("==", 0),
        "first_hits": ("==", size.distinct),
        "prepare_ratio": ("<=", 0.35),
        "prepare_ratio_ttl": ("<=", 0.2),
        "prepare_ratio_large": ("<=", 0.05),
        "json_ratio": (">=", 1),
    }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        figures=figures,
        control=control,
        targets={name: target for name, target in targets.items() if name in counts | figures},
        series={},
        holds=claim_holds(counts),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
