"""Counts what callers see and what is logged while the shadow is well, bad, late or dead."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tools.mesh.istio import Json
from tools.mesh.proxy import Proxy, shipped, translated

from ..app.compare import compare
from ..app.judge import Report
from ..app.rule import Rule
from .baselines import DELAY_SECONDS
from .bench import (
    FAILED,
    NOT_SENT,
    Bench,
    bodies,
    counted,
    send,
    send_at_once,
    wait_until_copied,
    without_copies,
)
from .processes import HERE, Database, Server

BAD = ("shuffled", "never", "slow")
FEW = 100
# As if there were none.
NO_RULE = Rule(
    min_pairs=FEW,
    agreement_at_least=1e-9,
    error_share_at_most=0.999_999,
    p99_ratio_at_most=1_000,
    unpaired_share_at_most=0.999_999,
)


class Size(NamedTuple):
    """How many requests each part sends, and how many the rule asks for."""

    good: int
    bad: int
    faulty: int
    min_pairs: int


FULL = Size(good=2_000, bad=2_000, faulty=800, min_pairs=1_000)
QUICK = Size(good=1_008, bad=208, faulty=100, min_pairs=200)

Counts = dict[str, int]


def count(
    size: Size, database: Database, models: Path, parent: Path
) -> tuple[Counts, Counts, dict[str, Report]]:
    """Returns the counts, the same of the controls, and the reports by what was planted."""
    with ExitStack() as stack:
        bench = Bench(database, parent / "log", models, stack)
        rule = bench.settings.rule_file.read_text("utf-8")
        bench.settings.rule_file = parent / "rule.yml"
        asked_for = rule.replace("min_pairs: 1000", f"min_pairs: {size.min_pairs}")
        bench.settings.rule_file.write_text(asked_for, "utf-8")
        # The rule is seen before the first pair.
        bench.report()
        with bench.mesh(translated(HERE, without_copies)) as alone:
            control, _ = count_good(bench, alone, FEW)
        with bench.mesh(translated(HERE, swap)) as swapped:
            bench.plant("swapped")
            control["answers_of_b"] = count_good(bench, swapped, FEW)[0]["answers_of_b"]
        with bench.mesh(shipped(HERE)) as mesh:
            bench.plant("none")
            counts, good = count_good(bench, mesh, size.good)
            reports = {"good": good}
            for fault in BAD:
                bench.plant(fault)
                send(mesh, bodies(size.bad, seed=1))
                reports[fault] = bench.report()
            counts |= count_faulty(bench, mesh, size.faulty)
            control["mirrored_unaccounted"] = counts.pop("not_arrived")
        control["client_errors"] = count_waiting(bench, parent / "waiting")
    bad = [reports[fault] for fault in BAD]
    counts["bad_versions_stopped"] = sum(each.verdict == "no-go" for each in bad)
    control["bad_versions_stopped"] = sum(
        compare(each.counts, NO_RULE).verdict != "go" for each in bad
    )
    del control["sent"], control["a_calls"]
    return counts, control, reports


def swap(manifest: Json) -> None:
    """Lets the new version answer, and mirrors to the live one."""
    if manifest["kind"] == "VirtualService":
        for route in manifest["spec"]["http"]:
            route["route"][0]["destination"]["subset"] = "rf"
            if "mirror" in route:
                route["mirror"]["subset"] = "svc"


def count_good(bench: Bench, mesh: Proxy, size: int) -> tuple[Counts, Report]:
    """Sends requests to a shadow without a fault, and looks where they and their answers are."""
    before = {arm: bench.calls(arm) for arm in ("svc", "rf")}
    runs = send(mesh, bodies(size))
    answers = [json.loads(body) for run in runs for body in run.bodies or []]
    report = bench.report()
    query = "SELECT body FROM records WHERE kind = 'prediction' AND body ->> 'arm' = 'rf'"
    of_b = {row.body["id"]: row.body["prediction"] for row in bench.database.rows(query)}
    return {
        "sent": sum(run.statuses[200] for run in runs),
        "a_calls": bench.calls("svc") - before["svc"],
        "b_calls": bench.calls("rf") - before["rf"],
        "pairs": report.counts.pairs,
        "answers_of_b": sum(of_b.get(each["job_id"]) == each["prediction"] for each in answers),
        "good_version_go": int(report.verdict == "go"),
    }, report


def count_faulty(bench: Bench, mesh: Proxy, size: int) -> Counts:
    """Sends requests, with a deadline, while the shadow is late, fails and in the end is dead."""
    errors = unaccounted = not_arrived = 0
    for fault in ("late", "failing", "dead"):
        bench.plant(fault)
        before = bench.calls("rf"), counted(mesh, NOT_SENT), counted(mesh, FAILED)
        if fault == "dead":
            bench.shadow.kill()
        run = send_at_once(
            mesh.url,
            bodies(size, seed=2),
            "/predict",
            deadline_seconds=DELAY_SECONDS["late"],
            connections=8,
        )
        wait_until_copied(mesh)
        errors += size - run.statuses[200]
        after = bench.calls("rf"), counted(mesh, NOT_SENT), counted(mesh, FAILED)
        arrived, overflow, failed = (b - a for a, b in zip(before, after, strict=True))
        unaccounted += abs(size - arrived - overflow - failed)
        not_arrived += size - arrived
    return {
        "sent_to_a_faulty_shadow": 3 * size,
        "client_errors": errors,
        "mirrored_unaccounted": unaccounted,
        "not_arrived": not_arrived,
    }


def count_waiting(bench: Bench, directory: Path) -> int:
    """Counts the callers of a live version that waits for a late shadow who get no answer.

    Both are started here, the shadow because the last one is dead.
    """
    env = bench.env | {"ARM": "svc", "SHADOW_URL": bench.shadow.url}
    with ThreadPoolExecutor() as threads:
        start = threads.submit(Server, directory, env, "measure.baselines:app")
        bench.shadow.start()
    bench.plant("late")
    with start.result() as waiting:
        run = send_at_once(
            waiting.url,
            bodies(FEW),
            "/predict",
            deadline_seconds=DELAY_SECONDS["late"],
            connections=FEW,
        )
    return FEW - run.statuses[200]
