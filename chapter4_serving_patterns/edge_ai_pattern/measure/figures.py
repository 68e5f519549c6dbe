"""Times and sizes: of a visit, of a prediction, of the models, and of the device's process."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from playwright.sync_api import Playwright

from tools.measure.browser import poll
from tools.measure.server import wait_until
from tools.measure.servers import Process
from tools.read.compose import load
from tools.run.rewrite import launch_of

from .. import visit
from ..train.release import predict as predict_in_python
from .baselines import ask_server
from .in_browser import OUT_OF_REACH, drawings, drawn_share, predict, visiting
from .processes import HERE, Stand
from .shelf import INSTALLED, held_out

Figures = dict[str, float]
FIGURE_TARGETS: dict[str, tuple[str, float]] = {
    "first_prediction_seconds": ("<=", 4),
    "offline_first_prediction_seconds": ("<=", 4),
    "browser_p50_ms": ("<=", 1),
    "first_visit_mb": ("<=", 4.2),
    "quantised_ratio": ("<=", 0.28),
    "accuracy": (">=", 0.98),
    "agreement": (">=", 0.995),
    "drawn_share": (">=", 0.85),
    "device_memory_mb": ("<=", 90),
    "device_address_space_mb": ("<=", 192),
}
ROUNDS, DRAWINGS = 3, 200
SHOWN = "3"
# What trains cannot start in the memory of a device. It may spin instead of failing.
TRAINING = "import train.model, pathlib; print(pathlib.Path('/proc/self/status').read_text())"
WITHIN = "import resource; resource.setrlimit(resource.RLIMIT_AS, [{0} << 20] * 2); "
PATIENCE_SECONDS = 30


def measure_visits(stand: Stand, playwright: Playwright, picture: Path) -> Figures:
    """Visits with new profiles, and again with the publisher stopped."""
    open_page = partial(visiting, playwright)
    first, offline, sent, fast = [], [], [], []
    for number in range(ROUNDS):
        profile = stand.directory / f"profile-{number}"
        with stand.publisher(INSTALLED) as publisher:
            with open_page(profile, f"{publisher.url}/") as visited:
                first.append(visited.ready_seconds)
            sent.append(publisher.sent()["bytes"])
        with open_page(profile, f"{publisher.url}/", [OUT_OF_REACH]) as visited:
            offline.append(visited.ready_seconds)
            _, p50_ms = predict(visited.page, stand.rows)
            fast.append(p50_ms)
            share = drawn_share(visited.page, DRAWINGS)
            visit.draw(visited.page, drawings()[SHOWN])
            poll(visited.page, "() => document.querySelector('li.best') !== null")
            visited.page.screenshot(path=picture, scale="css")
    return {
        "first_prediction_seconds": statistics.median(first),
        "offline_first_prediction_seconds": statistics.median(offline),
        "browser_p50_ms": statistics.median(fast),
        "first_visit_mb": statistics.median(sent) / 1e6,
        "drawn_share": share,
    }


def measure_models(stand: Stand) -> Figures:
    """Compares the quantised model with the full one."""
    rows, digits = held_out()
    full = (HERE / "models/full.onnx").read_bytes()
    of_full = np.asarray(predict_in_python(full, rows.tolist())).argmax(axis=1)
    of_ours = stand.answers[INSTALLED].argmax(axis=1)
    return {
        "full_kb": len(full) / 1000,
        "quantised_kb": len(stand.shelf.network) / 1000,
        "quantised_ratio": len(stand.shelf.network) / len(full),
        "accuracy": float(np.mean(of_ours == digits)),
        "full_accuracy": float(np.mean(of_full == digits)),
        "agreement": float(np.mean(of_ours == of_full)),
    }


def p50_ms(call: Callable[[], object], count: int = 200) -> float:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def measure_device(stand: Stand) -> Figures:
    """Runs the device as Compose does, until it has updated and predicted."""
    compose = load(HERE)
    launch = launch_of(compose, compose.services["device"])
    with stand.publisher(INSTALLED) as publisher:
        own = {
            "PUBLISHER_URL": publisher.url,
            "STORE_DIRECTORY": str(stand.directory / "of-process"),
            "ALIVE_FILE": str(stand.directory / "alive"),
            "PUBLIC_KEY_FILE": str(stand.shelf.directory / "public_key"),
        }
        log = stand.directory / "device.log"
        environment = {**launch.environment, **own}
        with Process(launch.command, cwd=HERE, log=log, env=environment) as device:
            said = re.compile(r"version 2 has predicted [1-9]\d* rows; up to date")
            wait_until(lambda: bool(said.search(log.read_text("utf-8"))), f"the device ({log})")
            memory = psutil.Process(device.process.pid).memory_info().rss / 1e6
            peak = peak_mb(Path(f"/proc/{device.process.pid}/status").read_text("utf-8"))
        asked = p50_ms(
            partial(ask_server, publisher.url.partition("//")[2], stand.rows[:1].tolist())
        )
    return {
        "device_memory_mb": memory,
        "device_address_space_mb": peak,
        "server_call_p50_ms": asked,
    }


def peak_mb(status: str) -> float:
    found = re.search(r"VmPeak:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def measure_training() -> Figures:
    """Imports what trains, without and with the ceiling of a device."""
    python = [sys.executable, "-c"]
    alone = subprocess.run(
        [*python, TRAINING], cwd=HERE, capture_output=True, text=True, check=True
    )
    try:
        subprocess.run(
            [*python, WITHIN.format(192) + TRAINING],
            cwd=HERE,
            capture_output=True,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return {"training_address_space_mb": peak_mb(alone.stdout)}
    raise SystemExit("error: what trains starts in the memory of a device, so that shows nothing")


def measure_all(stand: Stand, playwright: Playwright, picture: Path) -> Figures:
    figures = measure_visits(stand, playwright, picture) | measure_models(stand)
    return figures | measure_device(stand) | measure_training()
