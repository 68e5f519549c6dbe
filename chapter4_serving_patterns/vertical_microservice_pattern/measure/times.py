"""The times: what the stages of a request take one after the other, and what their order buys."""

import statistics
from contextlib import ExitStack
from functools import partial

import numpy as np
from sklearn.metrics import accuracy_score

from tools.measure.server import interleave, suspended
from tools.measure.spans import Span, receiving

from ..train.digits import Split, load
from ..train.stages import READERS, both_ways, fit
from .counts import Asked, ask_rows, stages_of
from .processes import (
    PATIENT,
    Known,
    bodies_of,
    in_one_process,
    run_proxy,
    run_services,
    send,
    traced_by,
    urls_of,
)

Figures = dict[str, float]
Series = dict[str, list[float]]
# A simulation: what each stage waits for a feature store.
WAIT_MS = 20
ROUNDS, REQUESTS = 3, 50
DEADLINE_MS, LATE, CALLERS = 1_000.0, 300, 32
# Below the first, no row is; the last one is above all.
THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.01)


def measure_accuracy(rows: np.ndarray, digits: np.ndarray) -> tuple[Figures, Series]:
    """Compares what the chain reads with what it reads without `second`, always, and in one call.

    The counts have shown that the services answer as one process does.
    """

    def accuracy(known: Known) -> float:
        return float(accuracy_score(digits, known.prediction.argmax(axis=1)))

    images = load()
    one = fit("second", Split(both_ways(images.x_train), np.tile(images.y_train, 2), rows, digits))
    ways = np.tile(READERS, len(rows) // 2)
    known = in_one_process(rows)
    curve = [in_one_process(rows, threshold) for threshold in THRESHOLDS]
    figures = {
        "calls_per_row": known.calls_per_row,
        "accuracy": accuracy(known),
        "accuracy_without_second": accuracy(curve[0]),
        "accuracy_second_always": accuracy(curve[-1]),
        "accuracy_one_model": float(one.score(rows, digits)),
        "accuracy_orientation": statistics.mean(
            way in stages for way, stages in zip(ways, known.stages, strict=True)
        ),
    }
    return figures, {
        "threshold": [*THRESHOLDS],
        "threshold_calls_per_row": [each.calls_per_row for each in curve],
        "threshold_accuracy": [accuracy(each) for each in curve],
    }


def measure_latency(early: np.ndarray, full: np.ndarray) -> tuple[Figures, Series]:
    """Compares a request with the sum of its stages, and one that ends early with a full chain."""
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving())
        traced = traced_by(receiver)
        services = stack.enter_context(run_services(traced | {"WAIT_MS": str(WAIT_MS)}))
        proxy = stack.enter_context(run_proxy(urls_of(services), traced | PATIENT))
        asked: dict[str, list[Asked]] = {"early": [], "full": []}

        def p50_ms(name: str, rows: np.ndarray) -> float:
            asked[name].append(ask_rows(proxy, services, receiver, rows, callers=1))
            return asked[name][-1].run.p50_ms

        arms = {"early": partial(p50_ms, "early", early), "full": partial(p50_ms, "full", full)}
        measured = interleave(arms, ROUNDS)
        memory_mb = proxy.memory_mb()
    median = {name: statistics.median(values) for name, values in measured.items()}
    traces = [trace for found in asked["full"] for trace in found.traces]
    sums_ms = [sum(span.seconds for span in stages_of(trace)) * 1000 for trace in traces]
    return {
        "latency_ratio_to_sum": median["full"] / statistics.median(sums_ms),
        "full_chain_p50_ms": median["full"],
        "early_exit_latency_ratio": median["early"] / median["full"],
        "memory_mb": memory_mb,
    }, {
        **waterfall("early", [trace for found in asked["early"] for trace in found.traces]),
        **waterfall("full", traces),
    }


def waterfall(name: str, traces: list[list[Span]]) -> Series:
    """Returns when the proxy and each stage began and ended in a request of the median duration."""
    trace = sorted(traces, key=lambda trace: trace[0].seconds)[len(traces) // 2]
    began = trace[0].start_ns
    return {
        f"{name}_start_ms": [(span.start_ns - began) / 1e6 for span in trace],
        f"{name}_end_ms": [(span.end_ns - began) / 1e6 for span in trace],
    }


def measure_deadline(full: np.ndarray) -> Figures:
    """Returns how late an answer is while `second` hangs."""
    with run_services() as services, run_proxy(urls_of(services)) as proxy:
        # The first requests open the connections.
        send(proxy, bodies_of(full[:CALLERS]), CALLERS)
        with suspended(services["second"]):
            run = send(proxy, bodies_of(full[:LATE]), CALLERS)
    return {"deadline_overrun_p99_ms": run.p99_ms - DEADLINE_MS}


def measure_all(rows: np.ndarray, digits: np.ndarray) -> tuple[Figures, Series]:
    known = in_one_process(rows)
    full = rows[known.needing("second")]
    early = rows[[number for number, stages in enumerate(known.stages) if len(stages) == 2]]
    figures, series = measure_accuracy(rows, digits)
    latency, waterfalls = measure_latency(early[:REQUESTS], full[:REQUESTS])
    return figures | latency | measure_deadline(full), series | waterfalls
