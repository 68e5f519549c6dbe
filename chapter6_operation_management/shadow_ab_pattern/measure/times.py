"""Measures what the shadow costs: the time of callers, the processors, and a report."""

import asyncio
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil

from tools.measure.load import Request, open_loop
from tools.measure.server import cpu_seconds_of, interleave, median_and_spread
from tools.mesh.proxy import Proxy, shipped, translated

from ..app.judge import judge
from .bench import Bench, bodies, wait_until_copied, without_copies
from .processes import HERE, Database

ROUNDS, PER_SECOND, SECONDS = 5, 100, 4
REPORTED, LOOKS = 100_000, 5
PLANTED = """INSERT INTO records (day, segment, position, kind, id, at, body)
SELECT (now() AT TIME ZONE 'UTC')::date, :arm, number, 'prediction', md5(number::text),
    now() + number * interval '1 ms', jsonb_build_object('kind', 'prediction',
    'id', md5(number::text), 'at', now(), 'arm', :arm, 'model', 'planted-' || :arm,
    'path', '/predict', 'ms', 0.2 + 0.001 * (number % 100),
    'data', jsonb_build_array(jsonb_build_array(5.1, 3.5, 1.4, 0.2)),
    'prediction', jsonb_build_array(jsonb_build_array(0.970931589, 0.015583082, 0.013485386)),
    'label', jsonb_build_array((ARRAY['setosa', 'versicolor', 'virginica'])[1 + number % 3]))
FROM generate_series(1, :count) AS number"""


def measure_times(database: Database, models: Path, parent: Path) -> dict[str, float]:
    with ExitStack() as stack:
        bench = Bench(database, parent / "times", models, stack)
        alone = stack.enter_context(bench.mesh(translated(HERE, without_copies)))
        mesh = stack.enter_context(bench.mesh(shipped(HERE)))
        rounds = interleave(
            {
                "alone": partial(caller, bench, alone, "none"),
                "mirrored": partial(caller, bench, mesh, "none"),
                "late": partial(caller, bench, mesh, "late"),
            },
            ROUNDS,
        )
    median = {
        (arm, name): median_and_spread([each[name] for each in found]).median
        for arm, found in rounds.items()
        for name in ("p50_ms", "p99_ms", "cpu_us")
    }
    return {
        "p50_ms_alone": median["alone", "p50_ms"],
        "p50_ms_mirrored": median["mirrored", "p50_ms"],
        "p50_ms_with_b_slow": median["late", "p50_ms"],
        "p99_ms_alone": median["alone", "p99_ms"],
        "p99_ms_with_b_slow": median["late", "p99_ms"],
        "p50_ratio_with_b_slow": ratio(rounds, "p50_ms"),
        "p99_ratio_with_b_slow": ratio(rounds, "p99_ms"),
        "cpu_us_alone": median["alone", "cpu_us"],
        "cpu_ratio_to_one_version": median["mirrored", "cpu_us"] / median["alone", "cpu_us"],
        "report_ms": measure_report(database),
    }


def ratio(rounds: dict[str, list[dict[str, float]]], name: str) -> float:
    """Returns the median of the ratios of each round: a noisy moment spoils only one of them."""
    pairs = zip(rounds["late"], rounds["alone"], strict=True)
    return median_and_spread([late[name] / alone[name] for late, alone in pairs]).median


def caller(bench: Bench, mesh: Proxy, fault: str) -> dict[str, float]:
    """Returns what a caller waits for and what both versions compute for it."""
    bench.plant(fault)
    processes = [psutil.Process(each.process.pid) for each in (bench.live, bench.shadow)]
    before = sum(map(cpu_seconds_of, processes))
    load = open_loop(
        [Request(f"{mesh.url}/predict", each) for each in bodies(200)],
        rate_per_second=PER_SECOND,
        seconds=SECONDS,
        deadline_seconds=10,
        poisson_seed=0,
    )
    run = asyncio.run(load)
    if run.statuses[200] != run.sent:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")
    wait_until_copied(mesh)
    cpu_us = (sum(map(cpu_seconds_of, processes)) - before) / run.sent * 1e6
    return {"p50_ms": run.p50_ms, "p99_ms": run.p99_ms, "cpu_us": cpu_us}


def measure_report(database: Database) -> float:
    """Returns the time of a report on planted pairs."""
    database.value("TRUNCATE records, shipped")
    for arm in ("svc", "rf"):
        database.value(PLANTED, arm=arm, count=REPORTED)
    database.value("ANALYZE records")
    settings = database.settings.model_copy(update={"settle_seconds": 0.0})
    times = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        with database.engine.begin() as connection:
            report = judge(connection, settings)
        times.append((time.perf_counter() - began) * 1000)
    if report.counts.pairs != REPORTED:
        raise SystemExit(f"error: the report has {report.counts.pairs} pairs")
    return median_and_spread(times).median
