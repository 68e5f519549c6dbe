"""Measures the claim: at a rate that the big model cannot serve, the small one misses nothing."""

import asyncio
import json
import os
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import uvloop

from tools.measure.load import Request, Run, closed_loop, open_loop
from tools.measure.results import Results, quick_argument
from tools.measure.server import Server
from tools.measure.servers import run_uvicorn

from ..app.model import Model
from ..app.schema import FEATURES
from ..train import model
from ..train.__main__ import COPIES as CLASSIFIED
from .models import Scored, difference, metadata_of, score, write_copies, write_others

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
CLAIM = "At 1.5 times the capacity of the big model, the small one answers every request in time."
DEADLINE_MS, OVERLOAD, SECONDS = 100, 1.5, 30
# A quick run judges no times: it counts how many answers the small model gives meanwhile.
QUICK_REQUESTS, QUICK_MEANWHILE = 40, 2
CAPACITY_REQUESTS, ROWS_ONE_BY_ONE, LIGHT_ROWS = 100, 20, 500
RECORDS, PILOT, BATCH = 1_000_000, 500, 32
# A night is eight hours.
FIGURE_TARGETS = {"good_hours_for_a_million": ("<=", 8.0)}
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def server(models: Path, core: int = 0) -> AbstractContextManager[Server]:
    env = {"MODEL_DIRECTORY": str(models)}
    app = f"{PACKAGE}.app.main:app"
    return run_uvicorn(app, cwd=ROOT, env=env, cpus={CORES[core % len(CORES)]})


def row_of(running: Server) -> Request:
    body = json.dumps({"data": metadata_of(HERE / "models")["sample"]}).encode()
    return Request(f"{running.url}/predict", body)


async def calls(running: Server, connections: int, count: int) -> Run:
    return await closed_loop(
        row_of(running), connections=connections, count=count, deadline_seconds=120
    )


def closed(running: Server, connections: int, count: int) -> Run:
    run = uvloop.run(calls(running, connections, count))
    if run.statuses[200] != count:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")
    return run


def in_time(running: Server, rate: float) -> dict[str, float]:
    """Sends requests on a schedule, and counts the answers within the deadline."""
    run = uvloop.run(
        open_loop(
            row_of(running),
            rate_per_second=rate,
            seconds=SECONDS,
            deadline_seconds=2 * SECONDS,
        )
    )
    return {
        "sent": run.sent,
        "in_time": run.answered_within(DEADLINE_MS),
        "p50_ms": run.percentile_ms(50),
        "p99_ms": run.percentile_ms(99),
    }


def meanwhile(big: Server, small: Server) -> tuple[int, int]:
    """Sends 40 requests to each at the same moment.

    Returns how many answers of the small model and of the big one came no later than the second
    answer of the big one.
    """

    async def both() -> tuple[Run, Run]:
        return await asyncio.gather(
            calls(big, QUICK_REQUESTS, QUICK_REQUESTS), calls(small, QUICK_REQUESTS, QUICK_REQUESTS)
        )

    of_big, of_small = uvloop.run(both())
    second_ms = np.sort(of_big.latencies_ms)[QUICK_MEANWHILE - 1]
    of_all = [int((run.latencies_ms <= second_ms).sum()) for run in (of_small, of_big)]
    return of_all[0], of_all[1]


def hours_for_records(directory: Path) -> float:
    """Forecasts a million rows, in batches, from a pilot of 500."""
    loaded = Model(directory, FEATURES)
    *_, x_test, _ = model.load()
    pilot = x_test[:PILOT].tolist()
    began = time.perf_counter()
    for start in range(0, PILOT, BATCH):
        loaded.predict(pilot[start : start + BATCH])
    return (time.perf_counter() - began) / PILOT * RECORDS / 3600


def costs(directory: Path, requests: int) -> dict[str, float]:
    """Returns what a server with this model takes for a request and in memory."""
    with server(directory) as running:
        before = running.cpu_seconds()
        run = closed(running, 1, requests)
        return {
            "p50_ms": run.p50_ms,
            "p99_ms": run.p99_ms,
            "cpu_seconds_per_1000": (running.cpu_seconds() - before) / requests * 1000,
            "memory_mb": running.memory_mb(),
        }


def two_processes(directory: Path) -> dict[str, float]:
    """Compares two processes of the big model, a caller at each, with one process and its caller.

    Returns how many times as many requests two answer, and how many times as long each takes.
    """

    async def callers(servers: list[Server]) -> tuple[float, float]:
        began = time.perf_counter()
        runs = await asyncio.gather(*(calls(one, 1, CAPACITY_REQUESTS // 2) for one in servers))
        seconds = time.perf_counter() - began
        latencies_ms = np.concatenate([run.latencies_ms for run in runs])
        return sum(run.sent for run in runs) / seconds, float(np.median(latencies_ms))

    with server(directory, 0) as one, server(directory, 1) as other:
        alone, alone_ms = uvloop.run(callers([one]))
        both, both_ms = uvloop.run(callers([one, other]))
    return {"throughput_of_two": both / alone, "p50_of_two": both_ms / alone_ms}


def figures_of(models: dict[str, Path], scored: dict[str, Scored]) -> dict[str, float]:
    """Returns what each model costs, and how much more accurate the big one is than the others."""
    figures: dict[str, float] = {}
    for name, directory in models.items():
        one = scored[name]
        requests = CAPACITY_REQUESTS if name == "bad" else LIGHT_ROWS
        costing = costs(directory, requests) | {
            "row_ms": one.row_ms,
            "load_seconds": one.load_seconds,
            "file_mb": one.file_mb,
            "accuracy": one.accuracy,
            "hours_for_a_million": hours_for_records(directory),
        }
        figures |= {f"{name}_{figure}": value for figure, value in costing.items()}
        if name != "bad":
            points = difference(scored["bad"], one)
            for suffix, value in zip(("", "_low", "_high"), points, strict=True):
                figures[f"bad_minus_{name}_points{suffix}"] = value
    return figures


def main() -> int:
    arguments = quick_argument(__doc__)
    figures: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    with ExitStack() as stack:
        big = stack.enter_context(server(HERE / "models/big", 0))
        small = stack.enter_context(server(HERE / "models", 1))
        if arguments.quick:
            counted, of_big = meanwhile(big, small)
            sent, most = QUICK_REQUESTS, QUICK_MEANWHILE
        else:
            capacity = closed(big, 2, CAPACITY_REQUESTS).per_second
            arms = {
                name: in_time(one, OVERLOAD * capacity)
                for name, one in (("bad", big), ("good", small))
            }
            sent = int(arms["good"]["sent"])
            counted, of_big = (int(arms[name]["in_time"]) for name in ("good", "bad"))
            most = int(0.05 * sent)
            figures = {"capacity_of_bad_per_second": capacity, "sent": sent} | {
                f"{name}_overload_{figure}": arm[figure]
                for name, arm in arms.items()
                for figure in ("p50_ms", "p99_ms")
            }
    if not arguments.quick:
        with TemporaryDirectory() as directory:
            described = metadata_of(HERE / "models")
            models = {"bad": HERE / "models/big", "good": HERE / "models"}
            models |= write_others(Path(directory), described)
            scored = {
                name: score(path, ROWS_ONE_BY_ONE if name == "bad" else LIGHT_ROWS)
                for name, path in models.items()
            }
            fewer = {
                copies: score(path, ROWS_ONE_BY_ONE)
                for copies, path in write_copies(Path(directory), described).items()
            }
            figures |= figures_of(models, scored) | two_processes(models["bad"])
        fewer[CLASSIFIED] = scored["bad"]
        series = {
            "copies": [*map(float, fewer)],
            "copies_row_ms": [one.row_ms for one in fewer.values()],
            "copies_accuracy": [one.accuracy for one in fewer.values()],
        }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={"in_time": counted},
        control={"in_time": of_big},
        figures=figures,
        targets={"in_time": ("==", sent)} | (FIGURE_TARGETS if figures else {}),
        series=series,
        holds=counted == sent and of_big <= most,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
