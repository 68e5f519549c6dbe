"""Measures what it costs that web asks predictor: time, CPU and memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tools.measure.server import Server, interleave, median_and_spread
from tools.mesh.proxy import fetch

from ..train.artifact import write_artifact
from ..train.model import COPIES, train
from .processes import run_predictor, run_web, send

# In how many copies a row is classified. The heavier ones compare models of 10 ms and more: after a
# shorter one, the caches of the processor still hold the rest of both programs.
MODELS = {
    "lightest": 1,
    "shipped": COPIES,
    "1x": 10 * COPIES,
    "4x": 40 * COPIES,
    "16x": 160 * COPIES,
}
CALLERS, ROUNDS = (1, 2, 4, 8), 5

Rounds = dict[str, list[dict[str, float]]]


def overhead(web: Server, predictor: Server) -> dict[str, float]:
    """Returns how long one caller waits for a prediction, and how much of that is the model."""
    before = len(fetch(f"{predictor.url}/calls"))
    run = send(f"{web.url}/predict", 1, 30)
    model_ms = np.array(fetch(f"{predictor.url}/calls")[before:])
    # One by one, because the model's own time varies more than the rest.
    overhead_ms = run.latencies_ms - model_ms
    return {"model_ms": float(np.median(model_ms)), "overhead_ms": float(np.median(overhead_ms))}


def cpu(web: Server, predictor: Server) -> dict[str, float]:
    """Returns the CPU time of web relative to that of predictor, for the same predictions."""
    before = web.cpu_seconds(), predictor.cpu_seconds()
    send(f"{web.url}/predict", 16, 1_500)
    return {
        "ratio": (web.cpu_seconds() - before[0]) / (predictor.cpu_seconds() - before[1]),
    }


def waiting(web: Server, callers: int) -> dict[str, float]:
    """Returns throughput and latency, and how far their product is from the number of callers."""
    run = send(f"{web.url}/predict", callers, 800)
    mean_ms = float(np.mean(run.latencies_ms))
    error = abs(run.per_second * mean_ms / 1000 / callers - 1)
    return {"per_second": run.per_second, "mean_ms": mean_ms, "error": error}


def median(rounds: Rounds, arm: str, figure: str) -> float:
    return median_and_spread([values[figure] for values in rounds[arm]]).median


@contextmanager
def models() -> Iterator[dict[str, Path]]:
    """Trains models that do several times as much."""
    with TemporaryDirectory() as name:
        for model, copies in MODELS.items():
            write_artifact(Path(name) / model, *train(copies))
        yield {model: Path(name) / model for model in MODELS}


def measure_overheads(trained: dict[str, Path]) -> dict[str, float]:
    """Measures what a caller waits in addition to the model, while the model gets heavier."""
    with ExitStack() as stack:
        arms = {}
        for model in ("shipped", "1x", "4x", "16x"):
            predictor = stack.enter_context(run_predictor(trained[model]))
            web = stack.enter_context(run_web(predictor.url, deadline_seconds=60))
            arms[model] = partial(overhead, web, predictor)
        rounds = interleave(arms, ROUNDS)
    pairs = zip(rounds["16x"], rounds["1x"], strict=True)
    ratios = [heavy["overhead_ms"] / light["overhead_ms"] for heavy, light in pairs]
    return {
        f"{figure}{name}_ms": median(rounds, model, f"{figure}_ms")
        for figure in ("model", "overhead")
        for model, name in (("shipped", ""), ("1x", "_1x"), ("4x", "_4x"), ("16x", "_16x"))
    } | {"overhead_ratio_16x_to_1x": median_and_spread(ratios).median}


def measure_cpu(lightest: Path) -> dict[str, float]:
    """Measures the CPU time and the memory of web, and the CPU time of another client library."""
    with (
        run_predictor(lightest, "predictor.main:app") as predictor,
        run_web(predictor.url, deadline_seconds=60) as web,
        run_web(predictor.url, "HttpxPredictor", deadline_seconds=60) as with_httpx,
    ):
        arms = {"web": partial(cpu, web, predictor), "httpx": partial(cpu, with_httpx, predictor)}
        rounds = interleave(arms, ROUNDS)
        return {
            "web_cpu_ratio_to_predictor": median(rounds, "web", "ratio"),
            "httpx_cpu_ratio_to_predictor": median(rounds, "httpx", "ratio"),
            "web_memory_mb": web.memory_mb(),
        }


def measure_waiting(model: Path) -> dict[str, list[float]]:
    """Measures throughput and latency for more and more callers that wait."""
    with run_predictor(model) as predictor, run_web(predictor.url, deadline_seconds=60) as web:
        arms = {str(callers): partial(waiting, web, callers) for callers in CALLERS}
        rounds = interleave(arms, ROUNDS)
    return {"callers": [float(callers) for callers in CALLERS]} | {
        figure: [median(rounds, arm, figure) for arm in arms]
        for figure in ("per_second", "mean_ms", "error")
    }
