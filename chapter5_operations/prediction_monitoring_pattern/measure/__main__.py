"""Measures the claim: each fault raises its own alert within three windows, and chance does not."""

import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import yaml

from tools.measure.results import Results, quick_argument
from tools.measure.server import memory_bytes_of

from ..train.__main__ import write
from .live import ALERTS, WITHIN_WINDOWS, Heard, Pattern, listen, named_without_monitor
from .processes import HERE, Database
from .rates import (
    CHECKS,
    World,
    count_false_alarms,
    half_differ,
    mean_is_off,
    notice,
    psi_is_high,
    share_of_alarms,
    z_is_high,
)
from .times import judge_ms, measure_cpu

CLAIM = "Each fault raises its own alert within three windows, once, and clean windows raise none."
TARGETS: dict[str, tuple[str, float]] = {
    "faults_named_within_3_windows": ("==", len(ALERTS)),
    "false_alarms": ("==", 0),
    "alerts_per_incident": ("==", 1),
    "resolved": ("==", len(ALERTS)),
    "alerts_without_playbook": ("==", 0),
    "scale_found_within_3": (">=", 0.99),
    "median_windows_to_alert": ("<=", 2),
    "seconds_to_alert": ("<=", 25),
    "cpu_ratio_with_metrics": ("<=", 1.12),
    "judge_ms": ("<=", 50),
    "monitor_memory_mb": ("<=", 160),
}
ROWS = (120, 500)
WINDOWS = 10_000
WINDOWS_QUICK = 200
WITHOUT_MONITOR_SECONDS = 25


def count_live(
    database: Database, models: Path, directory: Path
) -> tuple[dict[str, int], dict[str, int], dict[str, float]]:
    """Plants every fault with the monitor, and then without it."""
    with ExitStack() as stack:
        pattern = Pattern(stack, database, models, directory)
        heard: list[Heard] = [listen(pattern, fault) for fault in ALERTS]
        monitor = psutil.Process(pattern.monitor.process.pid)
        memory_mb = memory_bytes_of(monitor) / 2**20
        alone = named_without_monitor(pattern, WITHOUT_MONITOR_SECONDS, ALERTS)
    within = [each for each in heard if each.alerts and each.windows <= WITHIN_WINDOWS]
    counts = {
        "faults_planted": len(heard),
        "faults_named_within_3_windows": len(within),
        "alerts_per_incident": max(each.alerts for each in heard),
        "resolved": sum(each.is_resolved for each in heard),
    }
    figures = {
        "seconds_to_alert": max(each.seconds for each in heard),
        "monitor_memory_mb": memory_mb,
    }
    return counts, {"faults_named_within_3_windows": len(alone)}, figures


def alerts_without_playbook() -> int:
    groups = yaml.safe_load((HERE / "rules.yml").read_text("utf-8"))["groups"]
    names = {rule["alert"] for group in groups for rule in group["rules"]}
    lines = (HERE / "playbook.md").read_text("utf-8").splitlines()
    return len(names - {line.removeprefix("## ") for line in lines if line.startswith("## ")})


def main() -> int:
    arguments = quick_argument(__doc__)
    windows = WINDOWS_QUICK if arguments.quick else WINDOWS
    figures: dict[str, float] = {}
    with TemporaryDirectory() as name:
        models = Path(name) / "models"
        write(models)
        world = World(models)
        alarms = [count_false_alarms(world, windows // len(ROWS), rows) for rows in ROWS]
        tries = 5 if arguments.quick else 200
        noticed = {fault: notice(world, fault, ROWS[0], tries) for fault in CHECKS}
        counts = {
            "clean_windows": windows,
            "false_alarms": sum(each for each, _ in alarms),
            "alerts_without_playbook": alerts_without_playbook(),
        }
        control = {"false_alarms": sum(by_mean for _, by_mean in alarms)}
        if not arguments.quick:
            env = {"MODEL_DIRECTORY": str(models), "OUTLIER_MODEL_DIRECTORY": f"{models}/outlier"}
            with Database() as database:
                live, alone, times = count_live(database, models, Path(name))
            counts, control = counts | live, control | alone
            figures = times | measure_cpu(Path(name), env)
            alarm_names = {
                "z_test_share": z_is_high,
                "psi_share": psi_is_high,
                "half_of_features_share": half_differ,
                "mean_5_percent_share": mean_is_off,
            }
            figures |= {
                each: share_of_alarms(world, alarm, 500, ROWS[0])
                for each, alarm in alarm_names.items()
            }
            figures |= {
                "scale_found_within_3": noticed["scale"].share,
                "median_windows_to_alert": median(each.median_windows for each in noticed.values()),
                "judge_ms": judge_ms(world),
            }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        figures=figures,
        control=control,
        targets={name: target for name, target in TARGETS.items() if name in counts | figures},
        holds=not counts["false_alarms"]
        and not counts["alerts_without_playbook"]
        and control["false_alarms"] > 0
        and all(each.share == 1 for each in noticed.values())
        and counts.get("faults_named_within_3_windows", len(ALERTS)) == len(ALERTS)
        and control.get("faults_named_within_3_windows", 0) < len(ALERTS),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
