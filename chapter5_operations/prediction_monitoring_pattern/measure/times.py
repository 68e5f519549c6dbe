"""Measures what the metrics cost a prediction, and what the monitor needs."""

from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil

from tools.measure.load import Request
from tools.measure.server import cpu_seconds_of, interleave

from ..app.judge import judge
from .processes import BODY, LOGGED, Server, send
from .rates import World

ROUNDS = 9
REQUESTS = 3_000
UNMETERED = (
    "--http",
    LOGGED[1].replace("app.metrics:CountedProtocol", "app.refusals:LoggedProtocol"),
)


def cpu_us(server: Server) -> float:
    """Returns the CPU time of a prediction."""
    process = psutil.Process(server.process.pid)
    before = cpu_seconds_of(process)
    send([Request(f"{server.url}/predict", BODY)], REQUESTS)
    return (cpu_seconds_of(process) - before) / REQUESTS * 1e6


def measure_cpu(directory: Path, env: dict[str, str]) -> dict[str, float]:
    """Compares the API with the one that it copies, in turns."""
    metered = Server(directory / "metered", env)
    plain = Server(directory / "plain", env, "app.logged:app", UNMETERED)
    with metered, plain:
        arms = {"cpu_us": metered, "unmetered_cpu_us": plain}
        for server in arms.values():
            cpu_us(server)
        costs = interleave({name: partial(cpu_us, each) for name, each in arms.items()}, ROUNDS)
    # The median of the ratios of each round: a noisy moment spoils only one of them.
    ratios = [ours / others for ours, others in zip(*costs.values(), strict=True)]
    medians = {name: median(values) for name, values in costs.items()}
    return medians | {"cpu_ratio_with_metrics": median(ratios)}


def judge_ms(world: World) -> float:
    window, baseline = world.sample(500), world.sample(1_000)
    times = []
    for _ in range(20):
        began = perf_counter()
        judge(window, baseline)
        times.append(perf_counter() - began)
    return median(times) * 1000
