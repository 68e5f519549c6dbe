"""Measures the claim: the first answer does not depend on the heavy model, and the second helps."""

import math
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.measure.results import Results, quick_argument
from tools.measure.server import interleave, median_and_spread

from ..train import heavy, model
from .answers import Models, compare, count_answers, count_waiting, train
from .times import arm, row_ms, suspended_arm, waiting_calls

HERE = Path(__file__).parents[1]
CLAIM = (
    "The first answer does not depend on the heavy model, and the second is better more often "
    "than worse."
)
# How many times as much as the shipped model the heavy models do.
TIMES = (1, 3, 10)
ROUNDS = 7
QUICK_COPIES, QUICK_ROWS = 16, 40
SITUATIONS = ("heavy", "ten_times", "stopped", "suspended", "killed")


def claim_holds(counts: dict[str, int]) -> bool:
    return (
        all(counts[f"first_answers_{name}"] == counts["sent"] for name in SITUATIONS)
        and counts["second_answers"] == counts["accepted"] > 0
        and counts["improved"] > counts["worsened"]
    )


def lowest_points(rows: int, improved: int, worsened: int) -> float:
    """Returns by how many percentage points accuracy rises at least, with 95 % confidence."""
    difference = improved - worsened
    deviation = math.sqrt(improved + worsened - difference**2 / rows)
    return 100 * (difference - 1.96 * deviation) / rows


def measure_times(light: Path, heavier: list[Path], parent: Path) -> dict[str, dict[str, float]]:
    """Returns the medians with each heavy model, and with a Redis that hangs."""
    with ExitStack() as stack:
        arms = {
            each.name: stack.enter_context(arm(light, each, parent / f"times_{each.name}"))
            for each in heavier
        }
        arms["suspended"] = stack.enter_context(suspended_arm(light, parent / "times_suspended"))
        measured = interleave(arms, ROUNDS)
    return {
        arm: {name: median_and_spread([each[name] for each in times]).median for name in times[0]}
        for arm, times in measured.items()
    }


def main() -> int:
    arguments = quick_argument(__doc__)
    # In a quick measurement both heavy models do less, but one still ten times as much.
    copies = QUICK_COPIES if arguments.quick else heavy.COPIES
    series: dict[str, list[float]] = {}
    figures: dict[str, float] = {}
    with TemporaryDirectory() as name:
        parent = Path(name)
        light, *heavier = train(parent, [times * copies for times in TIMES])
        models = Models(light, heavier[0], heavier[-1])
        _, _, rows, _ = model.load()
        rows = rows[:QUICK_ROWS] if arguments.quick else rows
        counts = count_answers(models, parent / "answers", rows)
        control = count_waiting(models, parent / "waiting", rows)
        ours, same = compare(light, (models.heavy, light), parent / "compare")
        counts |= ours
        control["changed"] = same["changed"]
        if not arguments.quick:
            times = measure_times(light, heavier, parent)
            series = {"model_ms": [row_ms(each) for each in heavier]} | {
                name: [times[each.name][name] for each in heavier]
                for name in ("first_p99_ms", "second_p50_ms")
            }
            first = series["first_p99_ms"]
            figures = {
                "first_p99_ms": first[0],
                "first_p99_10x_ms": first[-1],
                "first_p99_ratio_10x": first[-1] / first[0],
                "first_p99_suspended_ms": times["suspended"]["first_p99_ms"],
                "time_to_second_p50_ms": times[models.heavy.name]["second_p50_ms"],
                "time_to_second_p99_ms": times[models.heavy.name]["second_p99_ms"],
                "redis_calls_per_waiting_second": waiting_calls(light, parent / "calls"),
                "light_model_ms": row_ms(light),
                "heavy_model_ms": series["model_ms"][0],
            }
    figures["improvement_lowest_points"] = lowest_points(
        counts["rows"], counts["improved"], counts["worsened"]
    )
    targets: dict[str, tuple[str, float]] = {
        **{f"first_answers_{name}": ("==", counts["sent"]) for name in SITUATIONS},
        "second_answers": ("==", counts["accepted"]),
        "first_p99_ratio_10x": ("<=", 1.5),
        "first_p99_suspended_ms": ("<=", 100),
        "improvement_lowest_points": (">=", 0),
        "redis_calls_per_waiting_second": ("<=", 60),
    }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        figures=figures,
        control=control,
        targets={name: target for name, target in targets.items() if name in counts | figures},
        series=series,
        holds=claim_holds(counts) and not any(control.values()),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
