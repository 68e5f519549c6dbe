"""Measures what a record costs the caller, how fast the shipper is, and how soon it can be read."""

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
from sqlalchemy import text

from tools.measure.load import Request, Run, closed_loop, open_loop
from tools.measure.server import cpu_seconds_of, interleave, median_and_spread, wait_until

from ..app.log import Log
from .baselines import INSERT, TABLE
from .processes import BODY, Database, Reader, Server, Shipper

# Where there are two cores, the server has one and the load generator the other.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
WRITERS = ("Unlogged", "", "Synced", "Queued", "Committed")
ROUNDS, CONNECTIONS, REQUESTS = 9, 16, 3_000
# Latencies are compared at this share of the capacity without a log.
LOAD, SECONDS = 0.25, 3
LINES, ROWS, LOOK_UPS = 50_000, 500, 200
OUTAGE_SECONDS, PER_SECOND = 30, 200

Rounds = dict[str, list[dict[str, float]]]


def a_record() -> dict[str, Any]:
    """Returns the fields of a typical prediction."""
    return {
        "path": "/predict",
        "share": 1.0,
        "ms": 0.214,
        "model": "1-bfbbdaa38af7",
        "data": json.loads(BODY)["data"],
        "prediction": [[0.9709315896034241, 0.01558308210223913, 0.01348538603633642]],
        "label": ["setosa"],
        "is_outlier": [False],
        "outlier_score": [0.4403733015060425],
    }


def ok(run: Run) -> Run:
    """Returns the run if every request got a 200."""
    if run.statuses[200] != run.sent:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")
    return run


def cost(server: Server) -> dict[str, float]:
    """Returns the time and the CPU time of a prediction when the server is saturated."""
    process = psutil.Process(server.process.pid)
    before = cpu_seconds_of(process)
    request = Request(f"{server.url}/predict", BODY)
    load = closed_loop(request, connections=CONNECTIONS, count=REQUESTS, deadline_seconds=60)
    run = ok(asyncio.run(load))
    cpu_us = (cpu_seconds_of(process) - before) / REQUESTS * 1e6
    return {"cpu_us": cpu_us, "us": 1e6 / run.per_second}


def latency(server: Server, rate_per_second: float) -> float:
    """Returns the 99th percentile of the latency when requests arrive at random."""
    load = open_loop(
        Request(f"{server.url}/predict", BODY),
        rate_per_second=rate_per_second,
        seconds=SECONDS,
        deadline_seconds=SECONDS,
        poisson_seed=0,
    )
    return ok(asyncio.run(load)).p99_ms


def median(rounds: Rounds, writer: str, figure: str) -> float:
    return median_and_spread([values[figure] for values in rounds[writer]]).median


def ratio(ours: list[float], others: list[float]) -> float:
    """Returns the median of the ratios of each round: a noisy moment spoils only one of them."""
    return median_and_spread([a / b for a, b in zip(ours, others, strict=True)]).median


def measure_writers(parent: Path, env: dict[str, str]) -> dict[str, float]:
    """Measures predictions with each way to write a record, and without one."""
    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[1]})
    # Nothing is refused while others have the core.
    env = env | {"MAX_REQUESTS_AT_ONCE": "10000"}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                Server(parent / f"writer {name}", env | {"WRITER": name},
                       "measure.baselines:app", cpus={CORES[0]})
            )
            for name in WRITERS
        }  # fmt: skip
        for server in servers.values():
            cost(server)
        costs = interleave({name: partial(cost, each) for name, each in servers.items()}, ROUNDS)
        rate = LOAD * 1e6 / median(costs, "Unlogged", "us")
        arms = {name: partial(latency, servers[name], rate) for name in ("Unlogged", "")}
        delays = interleave(arms, ROUNDS)
    if len(CORES) > 1:
        os.sched_setaffinity(0, set(CORES))
    cpu = {name: [values["cpu_us"] for values in costs[name]] for name in WRITERS}
    unlogged_us = median(costs, "Unlogged", "us")
    added = {name: median(costs, name, "us") - unlogged_us for name in WRITERS[1:]}
    return {
        "cpu_us": median(costs, "", "cpu_us"),
        "unlogged_cpu_us": median(costs, "Unlogged", "cpu_us"),
        "cpu_ratio_to_unlogged": ratio(cpu[""], cpu["Unlogged"]),
        "p99_ms": median_and_spread(delays[""]).median,
        "unlogged_p99_ms": median_and_spread(delays["Unlogged"]).median,
        "p99_ratio_to_unlogged": ratio(delays[""], delays["Unlogged"]),
        "file_added_us": added[""],
        "fdatasync_added_us": added["Synced"],
        "queue_added_us": added["Queued"],
        "commit_added_us": added["Committed"],
    }


@contextmanager
def segment(lines: int) -> Iterator[tuple[Path, float, int]]:
    """Writes a segment, and yields its directory, the time of a line in us, and its size."""
    with TemporaryDirectory() as name:
        log, record = Log(Path(name), 10**9, 10**10), a_record()
        began = time.perf_counter()
        for number in range(lines):
            log.append("prediction", f"{number:032x}", **record)
        line_us = (time.perf_counter() - began) / lines * 1e6
        log.close()
        yield Path(name), line_us, log.size


def ship_per_second(database: Database) -> float:
    with segment(LINES) as (directory, _, _):
        began = time.perf_counter()
        database.ship(directory)
        per_second = LINES / (time.perf_counter() - began)
    database.value("TRUNCATE records, shipped")
    return per_second


def row_by_row_per_second(database: Database) -> float:
    """Returns the same with a statement and a commit for each line."""
    database.value(TABLE)
    with segment(ROWS) as (directory, _, _), database.engine.connect() as connection:
        (path,) = directory.glob("*.jsonl")
        began = time.perf_counter()
        for line in path.read_text().splitlines():
            connection.execute(INSERT, {"id": json.loads(line)["id"], "body": line})
            connection.commit()
        return ROWS / (time.perf_counter() - began)


def measure_shipper(database: Database) -> dict[str, float]:
    measured = interleave(
        {
            "shipped_per_second": partial(ship_per_second, database),
            "row_by_row_per_second": partial(row_by_row_per_second, database),
        },
        3,
    )
    figures = {name: median_and_spread(values).median for name, values in measured.items()}
    with segment(LINES) as (_, line_us, size):
        record_bytes = size / LINES
    return figures | {
        "ship_ratio_to_row_by_row": figures["shipped_per_second"]
        / figures["row_by_row_per_second"],
        "append_us": line_us,
        "bytes_per_record": record_bytes,
        "gb_a_day_at_100_per_second": record_bytes * 100 * 86_400 / 1e9,
    }


def measure_reading(parent: Path, env: dict[str, str], database: Database) -> dict[str, float]:
    """Measures how soon a record can be read, and how long an outage is felt afterwards."""
    with (
        Server(parent / "reading", env) as api,
        Shipper(parent / "reading", env),
        Reader(parent / "reader of times", env) as reader,
        httpx.Client(timeout=60) as client,
    ):
        delays = [delay_ms(client, api, reader) for _ in range(LOOK_UPS)]
        before = database.value("SELECT count(*) FROM records")
        database.kill()
        load = open_loop(
            Request(f"{api.url}/predict", BODY),
            rate_per_second=PER_SECOND,
            seconds=OUTAGE_SECONDS,
            deadline_seconds=10,
        )
        sent = ok(asyncio.run(load)).sent
        database.start()
        began = time.perf_counter()

        def is_stored() -> bool:
            return bool(database.value("SELECT count(*) FROM records") == before + sent)

        wait_until(is_stored, "the records of the outage", 60)
        catch_up_seconds = time.perf_counter() - began
    return {
        "queryable_p99_ms": float(np.percentile(delays, 99)),
        "catch_up_seconds": catch_up_seconds,
    }


def delay_ms(client: httpx.Client, api: Server, reader: Server) -> float:
    """Returns the time from an answer to the first reading of its record."""
    job_id = client.post(f"{api.url}/predict", content=BODY).json()["job_id"]
    began = time.perf_counter()
    while client.get(f"{reader.url}/log/{job_id}").status_code != 200:
        pass
    return (time.perf_counter() - began) * 1000


def measure_times(parent: Path, models: Path, database: Database) -> dict[str, float]:
    shared = {"MODEL_DIRECTORY": str(models), "OUTLIER_MODEL_DIRECTORY": str(models / "outlier")}
    env = database.variables | shared
    with database.engine.begin() as connection:
        connection.execute(text(TABLE))
    return (
        measure_writers(parent, env)
        | measure_reading(parent, env, database)
        | measure_shipper(database)
    )
