"""Measures what the split costs in response time."""

import asyncio
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tools.measure.load import Request, open_loop
from tools.measure.server import interleave, median_and_spread
from tools.mesh.proxy import Proxy, shipped, translated

from .baselines import without_split
from .bench import Bench, users
from .processes import BODY, HERE, Database

ROUNDS, PER_SECOND, SECONDS = 5, 100, 4


def measure_times(database: Database, models: Path, parent: Path) -> dict[str, float]:
    with ExitStack() as stack:
        bench = Bench(database, parent / "times", models, stack)
        split = stack.enter_context(bench.mesh(shipped(HERE)))
        plain = stack.enter_context(bench.mesh(translated(HERE, without_split)))
        rounds = interleave(
            {"split": partial(p99_ms, split), "plain": partial(p99_ms, plain)}, ROUNDS
        )
    pairs = zip(rounds["split"], rounds["plain"], strict=True)
    return {
        "p99_ms_split": median_and_spread(rounds["split"]).median,
        "p99_ms_plain": median_and_spread(rounds["plain"]).median,
        # Of each round: a noisy moment spoils only one of them.
        "mesh_p99_ratio": median_and_spread([one / other for one, other in pairs]).median,
    }


def p99_ms(mesh: Proxy) -> float:
    load = open_loop(
        [Request(f"{mesh.url}/predict", BODY, {"x-user-id": user}) for user in users(200)],
        rate_per_second=PER_SECOND,
        seconds=SECONDS,
        deadline_seconds=10,
        poisson_seed=0,
    )
    run = asyncio.run(load)
    if run.statuses[200] != run.sent:
        raise SystemExit(f"error: not every request got a 200: {run.statuses} {run.errors}")
    return run.p99_ms
