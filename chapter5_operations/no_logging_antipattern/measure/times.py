"""Measures what a record costs, and how long the answers about a large log take."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import httpx
import numpy as np

from tools.measure.load import Request, closed_loop
from tools.measure.server import Server, interleave, median_and_spread, serve
from tools.measure.servers import UVICORN_OPTIONS
from tools.run.ports import free_port

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)
# Each arm with its protocol.
GOOD = ("app.main:app", "app.record:RecordedProtocol")
BAD = ("app.bad:app", "app.guard:BoundedProtocol")
OPERATOR = ("app.ask:app", "app.guard:BoundedProtocol")
# Where there are two cores, the server has one and the load generator the other.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
BODY = b'{"data": [[5.1, 3.5, 1.4, 0.2]]}'
CALLER = {"x-caller": "greenhouse"}
ROUNDS, CONNECTIONS, REQUESTS = 15, 16, 4_000
LINES, ASKED = 100_000, 100


def server(
    app: tuple[str, str], env: Mapping[str, str], cpus: set[int] | None = None
) -> AbstractContextManager[Server]:
    port = free_port()
    program, protocol = (f"{PACKAGE}.{name}" for name in app)
    command = [sys.executable, "-m", "uvicorn", program, "--port", str(port), "--http", protocol]
    return serve(
        [*command, *UVICORN_OPTIONS],
        cwd=ROOT,
        env=env,
        ready_url=f"http://127.0.0.1:{port}/ready",
        port=port,
        cpus=cpus,
    )


def cpu_us(running: Server) -> float:
    """Returns the CPU time of a prediction when the server is saturated."""
    request = Request(f"{running.url}/predict/label", BODY, CALLER)
    before = running.cpu_seconds()
    load = closed_loop(request, connections=CONNECTIONS, count=REQUESTS, deadline_seconds=60)
    run = asyncio.run(load)
    if run.statuses[200] != REQUESTS:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")
    return (running.cpu_seconds() - before) / REQUESTS * 1e6


def measure_costs(env: Mapping[str, str]) -> dict[str, float]:
    """Measures the CPU time and memory of both servers."""
    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[1]})
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(server(app, env, {CORES[0]}))
            for name, app in (("good", GOOD), ("bad", BAD))
        }
        for running in servers.values():
            cpu_us(running)
        found = interleave({name: partial(cpu_us, one) for name, one in servers.items()}, ROUNDS)
        memory = {name: running.memory_mb() for name, running in servers.items()}
    if len(CORES) > 1:
        os.sched_setaffinity(0, set(CORES))
    # The median of the ratios of each round: a noisy moment spoils only one of them.
    ratios = [ours / theirs for ours, theirs in zip(found["good"], found["bad"], strict=True)]
    return {
        "cpu_ratio_to_bad": median_and_spread(ratios).median,
        "cpu_us": median_and_spread(found["good"]).median,
        "bad_cpu_us": median_and_spread(found["bad"]).median,
        "memory_mb": memory["good"],
        "bad_memory_mb": memory["bad"],
    }


def write_large(log: Path, directory: Path) -> None:
    """Repeats the simulated records, later each time and with other IDs, up to so many lines."""
    records = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    directory.mkdir(parents=True)
    with (directory / "large.jsonl").open("w", encoding="utf-8") as file:
        for number in range(LINES):
            turn, record = number // len(records), records[number % len(records)]
            at = datetime.fromisoformat(record["at"]) + timedelta(hours=2 * turn)
            changes = {"id": f"{turn:04x}{record['id'][4:]}", "at": at.isoformat()}
            file.write(json.dumps(record | changes, separators=(",", ":")) + "\n")


def measure_answers(env: Mapping[str, str], log: Path, evidence: Path) -> dict[str, float]:
    """Measures how long the operator needs for all ten answers."""
    write_large(log, evidence / "good")
    seconds = []
    with (
        server(OPERATOR, {**env, "EVIDENCE_DIRECTORY": str(evidence)}) as operator,
        httpx.Client(base_url=operator.url, timeout=60) as client,
    ):
        for _ in range(ASKED):
            began = time.perf_counter()
            client.get("/answers", params={"arm": "good"}).raise_for_status()
            seconds.append(time.perf_counter() - began)
        memory_mb = operator.memory_mb()
    return {
        "answer_p99_ms": float(np.percentile(seconds, 99)) * 1000,
        "answer_p50_ms": float(np.percentile(seconds, 50)) * 1000,
        "operator_memory_mb": memory_mb,
    }
