"""The times: what waiting, computing, another client and tracing cost a request."""

import re
import statistics
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter

import httpx

from tools.measure.server import Server, interleave, suspended
from tools.measure.spans import receiving

from ..train.iris import LABELS
from .counts import count_overlapping
from .processes import (
    NOTHING,
    ONE_ROW,
    PATIENT,
    Services,
    run_proxy,
    run_services,
    send,
    traced_by,
    urls_of,
)

WAITS_MS = (50.0, 100.0, 150.0)
# About 50 ms of one core.
MORE_ROWS = 5_000
ROUNDS, REQUESTS = 3, 500
# More than a batch of spans.
TRACED_REQUESTS = 2_000
ONE_PERCENT = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
TIMING = re.compile(r"(\w+);(?:desc=\"[^\"]*\";)?dur=([\d.]+)")

Figures = dict[str, float]


def p50_ms(url: str, count: int) -> float:
    return send(url, count, callers=1).p50_ms


def measure_waiting() -> Figures:
    """Compares the proxy with its slowest service, when services wait for something else."""
    with run_services(WAITS_MS) as services, ExitStack() as stack:
        urls = urls_of(services)
        proxy = stack.enter_context(run_proxy(urls, "", PATIENT))
        in_sequence = stack.enter_context(run_proxy(urls, "in_sequence", PATIENT))
        arms = {"proxy": proxy, "in_sequence": in_sequence, "slowest": services[LABELS[-1]]}
        measured = interleave(
            {name: partial(p50_ms, f"{arm.url}/predict", 20) for name, arm in arms.items()}, ROUNDS
        )
        median = {name: statistics.median(values) for name, values in measured.items()}
        first, last = measure_stream(proxy)
    return {
        "wait_bound_ratio": median["proxy"] / median["slowest"],
        "sequential_wait_bound_ratio": median["in_sequence"] / median["slowest"],
        "first_ms": first,
        "all_ms": last,
    }


def measure_stream(proxy: Server) -> tuple[float, float]:
    """Returns when the first and the last service of a stream have answered."""
    times: list[tuple[float, float]] = []
    with httpx.Client(base_url=proxy.url, timeout=60, trust_env=False) as client:
        for _ in range(20):
            began = perf_counter()
            with client.stream("POST", "/predict/stream", content=ONE_ROW) as response:
                arrived = [perf_counter() - began for _ in response.iter_lines()]
            times.append((arrived[0] * 1000, arrived[-1] * 1000))
    first, last = zip(*times, strict=True)
    return statistics.median(first), statistics.median(last)


def measure_computing() -> Figures:
    """Compares at once with in sequence, when services need a core each."""
    with run_services(variables={"MORE_ROWS": str(MORE_ROWS)}) as services, ExitStack() as stack:
        arms = {
            name: stack.enter_context(run_proxy(urls_of(services), name, PATIENT))
            for name in ("", "in_sequence")
        }
        measured = interleave(
            {name: partial(p50_ms, f"{arm.url}/predict", 20) for name, arm in arms.items()}, ROUNDS
        )
    return {
        "cpu_bound_speedup": statistics.median(measured["in_sequence"])
        / statistics.median(measured[""])
    }


def cpu_us(proxy: Server, of: Mapping[str, Server], requests: int = REQUESTS) -> float:
    """Returns the CPU time that a fan-out takes of these processes."""
    before = sum(server.cpu_seconds() for server in of.values())
    send(f"{proxy.url}/predict", requests)
    return (sum(server.cpu_seconds() for server in of.values()) - before) / requests * 1e6


@contextmanager
def all_processes(
    variables: Mapping[str, str] = NOTHING,
) -> Iterator[tuple[Server, Services]]:
    with (
        run_services(variables=variables) as services,
        run_proxy(urls_of(services), "", {**PATIENT, **variables}) as proxy,
    ):
        yield proxy, services | {"proxy": proxy}


def measure_cpu() -> Figures:
    """Compares the CPU time of a fan-out with httpx's, and that of all processes with tracing."""
    with receiving() as receiver, ExitStack() as stack:
        # As often as is usual: each time takes milliseconds.
        traced = traced_by(receiver) | {"OTEL_BSP_SCHEDULE_DELAY": "5000"}
        proxy, services = stack.enter_context(all_processes())
        urls = urls_of({name: services[name] for name in LABELS})
        with_httpx = stack.enter_context(run_proxy(urls, "httpx", PATIENT))
        always = stack.enter_context(all_processes(traced))
        seldom = stack.enter_context(all_processes(traced | ONE_PERCENT))
        arms = {
            "proxy": partial(cpu_us, proxy, {"proxy": proxy}),
            "httpx": partial(cpu_us, with_httpx, {"proxy": with_httpx}),
            "untraced": partial(cpu_us, proxy, services, TRACED_REQUESTS),
            "always": partial(cpu_us, *always, TRACED_REQUESTS),
            "seldom": partial(cpu_us, *seldom, TRACED_REQUESTS),
        }
        measured = interleave(arms, ROUNDS)
        memory_mb = proxy.memory_mb()
    median = {name: statistics.median(values) for name, values in measured.items()}
    return {
        "proxy_cpu_us": median["proxy"],
        "proxy_cpu_ratio_to_httpx": median["proxy"] / median["httpx"],
        "tracing_cpu_ratio": median["always"] / median["untraced"],
        "tracing_1_percent_cpu_ratio": median["seldom"] / median["untraced"],
        "memory_mb": memory_mb,
    }


def durations_ms(client: httpx.Client) -> dict[str, float]:
    header = client.post("/predict", content=ONE_ROW).headers["server-timing"]
    return {name: float(duration) for name, duration in TIMING.findall(header)}


def measure_tail() -> Figures:
    """Compares the 99th percentile of the slowest service with those of the single ones."""
    with (
        run_services() as services,
        run_proxy(urls_of(services), "", PATIENT) as proxy,
        httpx.Client(base_url=proxy.url, timeout=60, trust_env=False) as client,
    ):
        requests = [durations_ms(client) for _ in range(2 * REQUESTS)]
    of_each = [p99(sorted(request[name] for request in requests)) for name in LABELS]
    of_all = p99(sorted(max(request.values()) for request in requests))
    return {"tail_ratio": of_all / statistics.mean(of_each)}


def p99(values: list[float]) -> float:
    return values[int(len(values) * 0.99)]


def measure_lines() -> dict[str, list[float]]:
    """Returns when each service began and ended in one request: at once, in sequence and cut."""
    series: dict[str, list[float]] = {}
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving())
        services = stack.enter_context(run_services(WAITS_MS, traced_by(receiver)))
        for name, arm in (("at_once", ""), ("in_sequence", "in_sequence")):
            variables = PATIENT | traced_by(receiver)
            proxy = stack.enter_context(run_proxy(urls_of(services), arm, variables))
            # The first request opens the connections.
            send(f"{proxy.url}/predict", 1)
            _, spans = count_overlapping(proxy, services, receiver, 1)
            began = min(span.start_ns for span in spans)
            found = {span.service: span for span in spans}
            series[f"{name}_start_ms"] = [(found[label].start_ns - began) / 1e6 for label in LABELS]
            series[f"{name}_end_ms"] = [(found[label].end_ns - began) / 1e6 for label in LABELS]
        proxy = stack.enter_context(run_proxy(urls_of(services)))
        client = httpx.Client(base_url=proxy.url, timeout=60, trust_env=False)
        stack.enter_context(client)
        durations_ms(client)
        with suspended(services[LABELS[-1]]):
            cut = durations_ms(client)
    series["cut_end_ms"] = [cut[label] for label in LABELS]
    return series


def measure_services() -> dict[str, list[float]]:
    """Returns the latency over the number of services, each of which waits 50 ms."""
    series: dict[str, list[float]] = {"services": [1, 2, 3], "at_once_ms": [], "in_sequence_ms": []}
    with run_services([50.0] * 3) as running:
        for count in (1, 2, 3):
            urls = dict([*urls_of(running).items()][:count])
            for name, arm in (("at_once_ms", ""), ("in_sequence_ms", "in_sequence")):
                with run_proxy(urls, arm, PATIENT) as proxy:
                    series[name].append(p50_ms(f"{proxy.url}/predict", 30))
    return series


def measure_all() -> tuple[Figures, dict[str, list[float]]]:
    figures = measure_waiting() | measure_computing() | measure_cpu() | measure_tail()
    return figures, measure_lines() | measure_services()
