"""Measures the claim: the replicas keep their throughput, however many requests are sent."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import tools.mesh.proxy
from tools.measure.load import Request, Run, closed_loop, open_loop
from tools.measure.results import Results, quick_argument
from tools.measure.server import Server, interleave, median_and_spread
from tools.measure.servers import UVICORN_OPTIONS, guarded, run_uvicorn
from tools.mesh.proxy import Proxy, fetch, shipped, without
from tools.read.compose import load as load_compose

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
CLAIM = (
    "At three times their capacity the replicas keep their throughput and the excess is refused at "
    "once; a replica that fails five times in a row gets no requests until its ejection ends."
)
SERVICES = load_compose(HERE).services
RULE = yaml.safe_load((HERE / "manifests/destination_rule.yml").read_text("utf-8"))
POLICY = RULE["spec"]["trafficPolicy"]
LIMIT: int = POLICY["connectionPool"]["http"]["http2MaxRequests"]
ERRORS: int = POLICY["outlierDetection"]["consecutive5xxErrors"]
OVERLOAD = 3
# Measured for the plot, besides the overload.
OFFERED = (0.5, 1.0, 1.5, 2.0)
DEADLINE_MS = 1_000
# A quick run checks no times: an accepted request may take as long as a busy machine needs.
QUICK_DEADLINE_MS = 30_000
# Where there are two cores, the replicas share one, and the proxy and the load generator the other.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
REPLICA_CPUS, PROXY_CPUS = {CORES[0]}, {CORES[-1]}


def replica(app: str = "measure.baselines:counting") -> AbstractContextManager[Server]:
    """Starts a replica, or the failing server, on the core of the replicas."""
    package = ".".join(HERE.relative_to(ROOT).parts)
    options = [*UVICORN_OPTIONS, *guarded(f"{package}.app")]
    return run_uvicorn(f"{package}.{app}", cwd=ROOT, options=options, cpus=REPLICA_CPUS)


@contextmanager
def proxy(config: Any, *replicas: Server) -> Iterator[Proxy]:
    """Starts Envoy in front of the replicas, on the other core."""
    names = [name for name in SERVICES if name.startswith("predictor-")]
    with tools.mesh.proxy.proxy(
        HERE, config, dict(zip(names, replicas, strict=True)), PROXY_CPUS
    ) as running:
        yield running


def with_timeout(config: Any, deadline_ms: int) -> Any:
    """Returns the configuration with another timeout for its routes."""
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (virtual_host,) = manager["route_config"]["virtual_hosts"]
    for route in virtual_host["routes"]:
        route["route"]["timeout"] = f"{deadline_ms / 1000:g}s"
    return config


def model_calls(replicas: list[Server]) -> int:
    """Returns how often the models of all replicas have been called."""
    return sum(int(fetch(f"{running.url}/calls")) for running in replicas)


def prediction(url: str) -> Request:
    """Returns a request for the prediction of one row."""
    metadata = json.loads((HERE / "models/metadata.json").read_bytes())
    return Request(f"{url}/predict", json.dumps({"data": metadata["sample"]}).encode())


def capacity(replicas: list[Server], count: int) -> dict[str, float]:
    """Measures the throughput with exactly as many concurrent callers as the limit allows."""
    with proxy(shipped(HERE), *replicas) as running:
        run = asyncio.run(
            closed_loop(prediction(running.url), connections=LIMIT, count=count, deadline_seconds=5)
        )
    return {"per_second": run.statuses[200] / run.seconds, "refused": run.statuses[503]}


def load(config: Any, replicas: list[Server], rate: float, seconds: float) -> dict[str, float]:
    """Sends requests on a schedule, whatever the replicas do, and counts the outcomes."""
    calls = model_calls(replicas)
    with proxy(config, *replicas) as running:
        run = asyncio.run(
            open_loop(
                prediction(running.url),
                rate_per_second=rate,
                seconds=seconds,
                deadline_seconds=2 * DEADLINE_MS / 1000,
            )
        )
    began = time.monotonic()
    for each in replicas:
        # A replica works in order, so once this is answered, everything before it is done.
        fetch(f"{each.url}/predict/test")
        calls += 1
    answered, refused = run.answered_within(DEADLINE_MS), run.statuses[503]
    in_time = (run.status_of == 200) & (run.latencies_ms <= DEADLINE_MS)
    answered_at_seconds = np.arange(run.sent) / rate + run.latencies_ms / 1000
    return {
        "sent": run.sent,
        "answered": answered,
        "refused": refused,
        "lost": run.sent - answered - refused,
        "model_calls_for_nobody": model_calls(replicas) - calls - answered,
        # Responses after the last request was sent are not part of the throughput under load.
        "goodput_per_second": np.count_nonzero(in_time & (answered_at_seconds <= seconds))
        / seconds,
        "answered_p99_ms": run.percentile_ms(99, 200),
        "refused_p99_ms": run.percentile_ms(99, 503) if refused else 0.0,
        # From the last request sent until the replicas are idle.
        "recovery_seconds": run.seconds - seconds + time.monotonic() - began,
        "lag_p99_ms": run.lag_p99_ms,
    }


def crowd(config: Any, replicas: list[Server], connections: int, count: int) -> dict[str, int]:
    """Sends requests of callers that wait as long as it takes, and counts the outcomes."""
    calls = model_calls(replicas)
    with proxy(with_timeout(config, QUICK_DEADLINE_MS), *replicas) as running:
        run = asyncio.run(
            closed_loop(
                prediction(running.url), connections=connections, count=count, deadline_seconds=60
            )
        )
    answered, refused = run.statuses[200], run.statuses[503]
    return {
        "sent": run.sent,
        "answered": answered,
        "refused": refused,
        "lost": run.sent - answered - refused,
        "model_calls_for_nobody": model_calls(replicas) - calls - answered,
    }


def ejection(config: Any, healthy: Server, watch_seconds: float = 0) -> dict[str, float]:
    """Sends requests one by one while one of two replicas fails, then repairs it and goes on."""
    with replica("measure.baselines:failing") as broken, proxy(config, healthy, broken) as running:
        # Envoy collects changes of a cluster's health for a second before it acts on them, and the
        # start of the cluster is such a change. Its uptime may be rounded up by a second.
        while watch_seconds and running.uptime_seconds() < 3:
            time.sleep(0.1)
        request = prediction(running.url)
        runs: list[Run] = [
            asyncio.run(closed_loop(request, connections=1, count=60, deadline_seconds=5))
        ]
        fetch(f"{broken.url}/repair", "POST")
        if watch_seconds:
            watch = open_loop(
                request, rate_per_second=20, seconds=watch_seconds, deadline_seconds=5
            )
            runs.append(asyncio.run(watch))
        seen = fetch(f"{broken.url}/seen")
    failed = [at for at, status in seen if status == 500]
    returned = [at for at, status in seen if status == 200]
    return {
        "errors_until_ejection": len(failed),
        "client_errors_while_ejected": sum(run.sent - run.statuses[200] for run in runs),
        "returned_after_seconds": returned[0] - failed[-1] if returned else 0.0,
    }


def measure_at(
    offered: float, replicas: list[Server], count: int, seconds: float, rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Measures the capacity, then offers a multiple of it with the limit and without it."""
    rates: list[float] = []
    unlimited = without(HERE, "connectionPool")

    def measure_capacity() -> dict[str, float]:
        found = capacity(replicas, count)
        rates.append(offered * found["per_second"])
        return found

    return interleave(
        {
            "capacity": measure_capacity,
            "limited": lambda: load(shipped(HERE), replicas, rates[-1], seconds),
            "unlimited": lambda: load(unlimited, replicas, rates[-1], seconds),
        },
        rounds,
    )


def median_ratio(
    numerators: list[dict[str, float]], denominators: list[dict[str, float]], name: str
) -> float:
    """Returns the median of the ratios of each round: a noisy moment spoils only one of them."""
    pairs = zip(numerators, denominators, strict=True)
    # An arm without any answer counts as one answer per second.
    ratios = [mine["goodput_per_second"] / max(theirs[name], 1) for mine, theirs in pairs]
    return median_and_spread(ratios).median


def over_load(
    measured: dict[float, dict[str, list[dict[str, float]]]],
) -> dict[str, list[float]]:
    """Returns the responses in time over the requests sent, both relative to the capacity."""
    arms = {"goodput_percent": "limited", "unlimited_goodput_percent": "unlimited"}
    loads = sorted(measured)
    return {"load_percent": [100 * load for load in loads]} | {
        name: [
            100 * median_ratio(measured[load][arm], measured[load]["capacity"], "per_second")
            for load in loads
        ]
        for name, arm in arms.items()
    }


EXPECTED = {
    "lost": 0,
    "model_calls_for_nobody": 0,
    "refused_at_the_limit": 0,
    "errors_until_ejection": ERRORS,
    "client_errors_while_ejected": 0,
}


def count_quickly() -> Results:
    """Counts only what does not depend on time: responses, refusals, errors until ejection."""
    slow = partial(with_timeout, deadline_ms=QUICK_DEADLINE_MS)
    with ExitStack() as stack:
        pair = [stack.enter_context(replica()) for _ in range(2)]
        at_the_limit = crowd(shipped(HERE), pair, LIMIT, 100)
        counts = crowd(shipped(HERE), pair, 4 * LIMIT, 400)
        unlimited = crowd(without(HERE, "connectionPool"), pair, 4 * LIMIT, 200)
        ejected = ejection(slow(shipped(HERE)), pair[0], watch_seconds=1)
        unprotected = ejection(slow(without(HERE, "outlierDetection", "retries")), pair[0])
    ejections = ("errors_until_ejection", "client_errors_while_ejected")
    counts |= {"refused_at_the_limit": at_the_limit["refused"]}
    counts |= {name: int(ejected[name]) for name in ejections}
    return Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=unlimited | {name: int(unprotected[name]) for name in ejections},
        figures={},
        targets={name: ("==", count) for name, count in EXPECTED.items()},
        holds={name: counts[name] for name in EXPECTED} == EXPECTED and counts["refused"] > 0,
    )


def main() -> int:
    arguments = quick_argument(__doc__)
    if len(CORES) > 1:
        os.sched_setaffinity(0, PROXY_CPUS)
    if arguments.quick:
        return count_quickly().finish(arguments, HERE)
    rounds, seconds, count = 3, 12, 300
    with ExitStack() as stack:
        pair = [stack.enter_context(replica()) for _ in range(2)]
        by_load = {offered: measure_at(offered, pair, count, 5, 1) for offered in OFFERED}
        measured = by_load[OVERLOAD] = measure_at(OVERLOAD, pair, count, seconds, rounds)
        base_seconds = int(POLICY["outlierDetection"]["baseEjectionTime"].removesuffix("s"))
        ejected = ejection(shipped(HERE), pair[0], watch_seconds=base_seconds + 2)
        undetected = ejection(without(HERE, "outlierDetection"), pair[0])
        unprotected = ejection(without(HERE, "outlierDetection", "retries"), pair[0])

    def total(arm: str, name: str) -> int:
        return int(sum(values[name] for values in measured[arm]))

    def median(arm: str, name: str) -> float:
        return median_and_spread([values[name] for values in measured[arm]]).median

    counted = ("sent", "answered", "refused", "lost", "model_calls_for_nobody")
    counts = {name: total("limited", name) for name in counted} | {
        "refused_at_the_limit": total("capacity", "refused"),
        "errors_until_ejection": int(ejected["errors_until_ejection"]),
        "client_errors_while_ejected": int(ejected["client_errors_while_ejected"]),
    }
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control={name: total("unlimited", name) for name in counted}
        | {
            "errors_until_ejection": int(undetected["errors_until_ejection"]),
            "client_errors_while_ejected": int(unprotected["client_errors_while_ejected"]),
        },
        figures={
            "capacity_per_second": median("capacity", "per_second"),
            "goodput_per_second": median("limited", "goodput_per_second"),
            "unlimited_goodput_per_second": median("unlimited", "goodput_per_second"),
            "goodput_ratio_to_capacity": median_ratio(
                measured["limited"], measured["capacity"], "per_second"
            ),
            "goodput_ratio_to_unlimited": median_ratio(
                measured["limited"], measured["unlimited"], "goodput_per_second"
            ),
            "answered_p99_ms": median("limited", "answered_p99_ms"),
            "refused_p99_ms": median("limited", "refused_p99_ms"),
            "recovery_seconds": median("limited", "recovery_seconds"),
            "unlimited_recovery_seconds": median("unlimited", "recovery_seconds"),
            "returned_after_seconds": ejected["returned_after_seconds"],
            "generator_lag_p99_ms": median("limited", "lag_p99_ms"),
        },
        targets={name: ("==", count) for name, count in EXPECTED.items()}
        | {
            "goodput_ratio_to_capacity": (">=", 0.9),
            "goodput_ratio_to_unlimited": (">=", 5),
            "refused_p99_ms": ("<=", 20),
        },
        series=over_load(by_load),
        holds={name: counts[name] for name in EXPECTED} == EXPECTED and counts["refused"] > 0,
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
