"""Measures how long a change takes to hold, and what the proxy adds."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, sleep

from tools.measure.server import Server, interleave, median_and_spread
from tools.mesh.proxy import fetch

from .processes import HERE, SHIPPED, run_models, run_proxy, send, urls_of, write

CHANGES, RELEASES, ROUNDS = 15, 3, 7
REQUESTS = 200
# How often the models compute each row: setosa takes about 5 ms then, and versicolor 10.
HEAVY = (4_500, 9_000, 1)


def change_to_effect(proxy: Server, file: Path) -> list[float]:
    """Returns how long each change takes, from the write to the first answer by it."""
    seconds = []
    for number in range(CHANGES):
        # At any time between two looks at the file.
        sleep(0.3 + number / CHANGES / 2)
        began = perf_counter()
        version = write(file, setosa={"threshold": number / CHANGES})
        while fetch(f"{proxy.url}/predict/post/test")["parameters"] != version:
            sleep(0.005)
        seconds.append(perf_counter() - began)
    return seconds


def retrain_and_release(folder: Path) -> float:
    """Returns how long it takes to train the models and to start servers with them."""
    began = perf_counter()
    command = [sys.executable, "-m", "train", "--output", str(folder / "models")]
    subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    with run_models(folder / "models"):
        return perf_counter() - began


def measure_changes(models: Mapping[str, Server], folder: Path) -> dict[str, float]:
    file = folder / "timed.yml"
    write(file)
    with run_proxy(urls_of(models), file) as proxy:
        effect = median_and_spread(change_to_effect(proxy, file)).median
    releases = [retrain_and_release(folder) for _ in range(RELEASES)]
    release = median_and_spread(releases).median
    return {
        "change_to_effect_seconds": effect,
        "retrain_and_release_seconds": release,
        "release_ratio_to_change": release / effect,
    }


def latency(server: Server) -> dict[str, float]:
    run = send(f"{server.url}/predict", REQUESTS, 1)
    return {"p50_ms": run.p50_ms, "p99_ms": run.p99_ms}


def measure_latency(copies: Sequence[int]) -> dict[str, float]:
    """Returns latencies, and that of the proxy relative to the slowest model that it asks."""
    with run_models(copies=copies) as models, run_proxy(urls_of(models), SHIPPED) as proxy:
        servers = {"slowest": models["versicolor"], "proxy": proxy}
        arms = {name: partial(latency, server) for name, server in servers.items()}
        rounds = interleave(arms, ROUNDS)
        memory_mb = proxy.memory_mb()
    pairs = list(zip(rounds["proxy"], rounds["slowest"], strict=True))
    return {
        "model_p50_ms": median_and_spread([slowest["p50_ms"] for _, slowest in pairs]).median,
        "proxy_p50_ms": median_and_spread([own["p50_ms"] for own, _ in pairs]).median,
        "p99_ratio": median_and_spread(
            [own["p99_ms"] / slowest["p99_ms"] for own, slowest in pairs]
        ).median,
        "memory_mb": memory_mb,
    }


def measure_latencies() -> dict[str, float]:
    """Compares the proxy with models of 5 and 10 ms, and with the shipped ones."""
    heavy, shipped = measure_latency(HEAVY), measure_latency((1, 1, 1))
    return {
        "slowest_model_p50_ms": heavy["model_p50_ms"],
        "proxy_p99_ratio_to_slowest_model": heavy["p99_ratio"],
        "shipped_model_p50_ms": shipped["model_p50_ms"],
        "proxy_p50_ms": shipped["proxy_p50_ms"],
        "proxy_memory_mb": shipped["memory_mb"],
    }
