"""Measures the claim: every row is answered as scikit-learn would, at little cost of its own."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray
from sklearn.datasets import load_iris

from tools.measure.load import Request, closed_loop
from tools.measure.results import Results, quick_argument
from tools.measure.server import Server, free_port, interleave, median_and_spread, serve

from ..train.iris import load
from ..train.model import fit

HERE = Path(__file__).parents[1]
CLAIM = "Every row of a request is answered, and equals scikit-learn's prediction."
FAST = ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
PLAIN = ["--loop", "asyncio", "--http", "h11"]
CONNECTIONS = 16
# The server has one core to itself and the load the other, where there are two.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


@contextmanager
def server(app: str, options: list[str]) -> Iterator[Server]:
    """Starts one of the servers with uvicorn on a core of its own."""
    port = free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    with serve(
        [sys.executable, "-m", "uvicorn", app, *address, *options],
        cwd=HERE,
        ready_url=f"http://127.0.0.1:{port}/ready",
        port=port,
        cpus={CORES[0]},
    ) as running:
        yield running


def count_rows(running: Server) -> tuple[int, int]:
    """Returns how many rows of iris are answered, and how many of those as scikit-learn does.

    The rows are sent ten at a time, and once more under a misspelt name, which no server that
    only answers what it was asked should answer.
    """
    rows = load_iris().data.astype(np.float32)
    split = load()
    batches = np.split(rows, 15)
    expected = np.split(fit(split.x_train, split.y_train).predict_proba(rows), 15)
    bodies = [json.dumps({"data": batch.tolist()}).encode() for batch in batches]
    misspelt = json.dumps({"dat": batches[0].tolist()}).encode()
    requests = [Request(f"{running.url}/predict", body) for body in [*bodies, misspelt]]
    run = uvloop.run(
        closed_loop(requests, connections=1, count=16, deadline_seconds=5, keep_bodies=True)
    )
    answers = [json.loads(body).get("prediction", []) for body in run.bodies or []]
    answered = sum(map(len, answers[:15]))
    equal = sum(map(equal_rows, answers[:15], expected)) - len(answers[15])
    return answered, equal


def equal_rows(answer: list[list[float]], expected: NDArray[np.float64]) -> int:
    """Returns how many rows of an answer are within 1e-5 of what they should be."""
    return sum(
        bool(np.allclose(row, truth, rtol=0, atol=1e-5))
        for row, truth in zip(answer, expected, strict=False)
    )


def cost(running: Server, count: int) -> dict[str, float]:
    """Returns the server's CPU time a prediction and the 99th percentile of its answers."""
    request = Request(f"{running.url}/predict", b'{"data": [[5.1, 3.5, 1.4, 0.2]]}')
    before = running.cpu_seconds()
    run = uvloop.run(
        closed_loop(request, connections=CONNECTIONS, count=count, deadline_seconds=30)
    )
    if run.statuses[200] != count:
        raise SystemExit(f"error: not every request was answered: {run.statuses} {run.errors}")
    return {"cpu_us": (running.cpu_seconds() - before) / count * 1e6, "p99_ms": run.p99_ms}


def refuse_100_mb(running: Server) -> float:
    """Returns the seconds after which a body of 100 MB is refused."""
    request = Request(f"{running.url}/predict", b" " * 100_000_000)
    run = uvloop.run(closed_loop(request, connections=1, count=1, deadline_seconds=30))
    if set(run.statuses) != {413}:
        raise SystemExit(f"error: 100 MB were not refused: {run.statuses} {run.errors}")
    return run.p50_ms / 1000


def main() -> int:
    arguments = quick_argument(__doc__)
    rounds, count = (5, 1_000) if arguments.quick else (15, 6_000)
    if len(CORES) > 1:
        os.sched_setaffinity(0, {CORES[1]})
    with ExitStack() as stack:
        ours = stack.enter_context(server("app.main:app", FAST))
        plain = stack.enter_context(server("measure.baselines:plain", PLAIN))
        noop = stack.enter_context(server("measure.baselines:noop", FAST))
        careless = stack.enter_context(server("measure.baselines:careless", FAST))
        answered, equal = count_rows(ours)
        answered_carelessly, equal_carelessly = count_rows(careless)
        arms = {"ours": ours, "plain": plain, "noop": noop}
        for arm in arms.values():
            cost(arm, count)
        measured = interleave(
            {name: partial(cost, arm, count) for name, arm in arms.items()}, rounds
        )
        memory_mb = ours.memory_mb()
        refusal_seconds = refuse_100_mb(ours)

    def median_ratio(figure: str, other: str) -> float:
        """The median over the rounds, so that a noisy moment spoils one ratio and not all."""
        pairs = zip(measured["ours"], measured[other], strict=True)
        return median_and_spread([mine[figure] / theirs[figure] for mine, theirs in pairs]).median

    def median(arm: str, figure: str) -> float:
        return median_and_spread([values[figure] for values in measured[arm]]).median

    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts={"rows_answered": answered, "rows_equal": equal},
        control={"rows_answered": answered_carelessly, "rows_equal": equal_carelessly},
        figures={
            "cpu_us": median("ours", "cpu_us"),
            "plain_cpu_us": median("plain", "cpu_us"),
            "noop_cpu_us": median("noop", "cpu_us"),
            "cpu_ratio_to_plain": median_ratio("cpu_us", "plain"),
            "cpu_ratio_to_noop": median_ratio("cpu_us", "noop"),
            "p99_ratio_to_plain": median_ratio("p99_ms", "plain"),
            "memory_mb": memory_mb,
            "start_seconds": ours.start_seconds,
            "refuse_100_mb_seconds": refusal_seconds,
        },
        targets={
            "rows_answered": ("==", 150),
            "rows_equal": ("==", 150),
            "cpu_ratio_to_plain": ("<=", 0.40),
            "cpu_ratio_to_noop": ("<=", 1.7),
            "p99_ratio_to_plain": ("<=", 0.25),
            "memory_mb": ("<=", 75),
            "start_seconds": ("<=", 1),
            "refuse_100_mb_seconds": ("<=", 0.2),
        },
        holds=(answered, equal) == (150, 150),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
