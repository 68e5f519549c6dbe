"""Measures the claim: nobody sees or waits for the new version, and the rule judges it."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.measure.results import Results, quick_argument

from ..train import rf, svc
from ..train.artifact import write_artifact
from .counts import BAD, FULL, QUICK, count
from .processes import HERE, Database
from .times import measure_times

CLAIM = (
    "Every request reaches both versions, nobody sees or waits for an answer of the new one, "
    "and the rule stops a bad version and lets a good one pass."
)
MEASURED: dict[str, tuple[str, float]] = {
    "p99_ratio_with_b_slow": ("<=", 1.3),
    "p50_ratio_with_b_slow": ("<=", 1.1),
    "report_ms": ("<=", 500),
}


def main() -> int:
    arguments = quick_argument(__doc__)
    size = QUICK if arguments.quick else FULL
    wanted = {
        "a_calls": size.good,
        "b_calls": size.good,
        "pairs": size.good,
        "answers_of_b": 0,
        "client_errors": 0,
        "mirrored_unaccounted": 0,
        "bad_versions_stopped": len(BAD),
        "good_version_go": 1,
    }
    figures: dict[str, float] = {}
    with TemporaryDirectory() as name, Database() as database:
        models = Path(name) / "models"
        write_artifact(models / "rf", *rf.train())
        write_artifact(models, *svc.train())
        counts, control, reports = count(size, database, models, Path(name))
        if not arguments.quick:
            for fault, report in reports.items():
                end = "" if fault == "good" else f"_{fault}"
                figures[f"agreement{end}"] = report.agreement or 0.0
            figures |= {
                "agreement_low": reports["good"].agreement_low or 0.0,
                "agreement_high": reports["good"].agreement_high or 0.0,
                **measure_times(database, models, Path(name)),
            }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=control,
        figures=figures,
        targets={name: ("==", value) for name, value in wanted.items()}
        | (MEASURED if figures else {}),
        holds=all(counts[name] == value for name, value in wanted.items()),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
