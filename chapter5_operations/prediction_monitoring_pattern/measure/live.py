"""Plants every fault in the running pattern, and counts which alerts come and go."""

import time
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tools.measure.server import answer_of, wait_until
from tools.measure.servers import Process
from tools.run.binaries import find
from tools.run.ports import free_port

from .processes import HERE, Database, Monitor, Server, Shipper

ALERTS = {
    "scale": "InputDrift",
    "shift": "InputDrift",
    "vanish": "LabelDrift",
    "outliers": "OutlierBurst",
    "mix": "OutlierBurst",
    "swap": "AccuracyDropped",
    "repeat": "RepeatedInput",
    "surge": "TrafficSurge",
    "silence": "NoTraffic",
    "errors": "ErrorShare",
}
IMAGE = "prom/prometheus:v2.53.3"
PLAIN = ("--http", Monitor.__module__.rpartition(".measure")[0] + ".app.guard:BoundedProtocol")
WITHIN_WINDOWS = 3
PATIENCE_SECONDS = 120


class Prometheus(Process):
    """Prometheus with the rules of the pattern, for servers on free ports."""

    def __init__(self, directory: Path, **ports: int) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = (HERE / "prometheus.yml").read_text("utf-8")
        for name, port in ports.items():
            config = config.replace(
                f"{name}:{8000 if name == 'api' else 8001}", f"127.0.0.1:{port}"
            )
        config = config.replace("/etc/prometheus/rules.yml", str(HERE / "rules.yml"))
        path = directory / "prometheus.yml"
        path.write_text(config, "utf-8")
        super().__init__(
            [
                str(find(IMAGE)),
                f"--config.file={path}",
                f"--storage.tsdb.path={directory / 'metrics'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            cwd=directory,
            log=directory / "prometheus.txt",
        )
        wait_until(lambda: answer_of(f"{self.url}/-/ready") == "200", "Prometheus to be ready", 60)

    def query(self, query: str) -> list[Any]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}).raise_for_status()
        result: list[Any] = answer.json()["data"]["result"]
        return result

    def firing(self) -> set[str]:
        found = httpx.get(f"{self.url}/api/v1/alerts").raise_for_status().json()["data"]["alerts"]
        return {each["labels"]["alertname"] for each in found if each["state"] == "firing"}


class Pattern:
    """All processes of the pattern on free ports; the stack ends them."""

    def __init__(
        self, stack: ExitStack, database: Database, models: Path, directory: Path, **settings: str
    ) -> None:
        self.failing = directory / "failing"
        env = {
            "MODEL_DIRECTORY": str(models),
            "OUTLIER_MODEL_DIRECTORY": str(models / "outlier"),
            "FAILING": str(self.failing),
            "WINDOW_SECONDS": "5",
            **database.variables,
            **settings,
        }
        self.database, self.directory = database, directory
        self.api = stack.enter_context(Server(directory, env, "measure.baselines:app"))
        self.shipper = stack.enter_context(Shipper(directory, env))
        self.monitor = stack.enter_context(Monitor(directory, env))
        self.prometheus = stack.enter_context(
            Prometheus(directory, api=self.api.port, monitor=self.monitor.port)
        )
        job = env | {"API_URL": self.api.url}
        self.job = stack.enter_context(Server(directory, job, "app.job:app", PLAIN))

    def plant(self, fault: str) -> None:
        if fault == "errors":
            self.failing.touch()
        else:
            httpx.post(f"{self.job.url}/fault/{fault}").raise_for_status()

    def lift(self) -> None:
        self.failing.unlink(missing_ok=True)
        httpx.post(f"{self.job.url}/fault/none").raise_for_status()

    def incidents(self, since: datetime, alert: str | None = None) -> list[dict[str, Any]]:
        found = httpx.get(f"{self.monitor.url}/incidents", timeout=60).raise_for_status()
        return [
            each
            for each in found.json()["data"]
            if datetime.fromisoformat(each["began"]) >= since and alert in (None, each["name"])
        ]

    def is_quiet(self) -> bool:
        """Tells whether windows are judged, and no alert fires."""
        query = "SELECT count(*) FROM windows WHERE checks <> '[]'"
        return self.database.value(query) >= 2 and not self.prometheus.firing()


class Heard(NamedTuple):
    """What came of a planted fault."""

    alerts: int
    windows: int
    seconds: float
    is_resolved: bool


def listen(pattern: Pattern, fault: str) -> Heard:
    """Plants a fault until its alert is there, lifts it, and waits until the alert has ended."""
    wait_until(pattern.is_quiet, "no alert", PATIENCE_SECONDS)
    planted, own = datetime.now(UTC), ALERTS[fault]
    pattern.plant(fault)
    began = time.monotonic()
    wait_until(lambda: bool(pattern.incidents(planted, own)), own, PATIENCE_SECONDS)
    seconds = time.monotonic() - began
    query = "SELECT count(*) FROM windows WHERE ended > :planted AND ended <= :began"
    (incident,) = pattern.incidents(planted, own)
    windows = pattern.database.value(query, planted=planted, began=incident["began"])
    pattern.lift()
    wait_until(lambda: not pattern.prometheus.firing(), f"the end of {own}", PATIENCE_SECONDS)

    def ended() -> bool:
        found = pattern.incidents(planted, own)
        return all(datetime.fromisoformat(each["ended"]) <= datetime.now(UTC) for each in found)

    wait_until(ended, f"{own} to be resolved", PATIENCE_SECONDS)
    return Heard(len(pattern.incidents(planted, own)), windows, seconds, ended())


def named_without_monitor(pattern: Pattern, seconds: float, faults: Iterable[str]) -> set[str]:
    """Plants each fault for a while without the monitor, and returns which have their alert."""
    pattern.monitor.stop()
    named = set()
    for fault in faults:
        pattern.plant(fault)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and fault not in named:
            if ALERTS[fault] in pattern.prometheus.firing():
                named.add(fault)
            time.sleep(0.5)
        pattern.lift()
    return named
