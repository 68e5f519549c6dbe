"""Runs both versions and a mesh in front of them, and asks for the report."""

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from sklearn.datasets import load_iris

from tools.measure.load import Request, Run, closed_loop
from tools.mesh.istio import Json
from tools.mesh.proxy import Proxy, fetch, proxy

from ..app.judge import Report, judge
from .processes import HERE, Database, Server

SHADOW = "cluster.outbound|8000|rf|iris"
# As many copies as the shadow has places for.
PLACES = 16
PATIENCE_SECONDS = 60
# What Envoy counts of copies that never arrive: beyond the limit, without a connection, and sent
# over a connection that the shadow has closed meanwhile.
NOT_SENT = ("upstream_rq_active_overflow", "upstream_rq_pending_overflow")
FAILED = ("upstream_rq_pending_failure_eject", "upstream_cx_destroy_remote_with_active_rq")


def bodies(count: int, seed: int = 0) -> list[bytes]:
    """Returns simulated requests: rows of iris, each a little different."""
    chance = np.random.default_rng(seed)
    rows = chance.choice(load_iris().data, count) + chance.normal(0, 0.05, (count, 4))
    return [json.dumps({"data": [np.round(row, 2).tolist()]}).encode() for row in rows]


def without_copies(manifest: Json) -> None:
    """Mirrors nothing."""
    for route in manifest.get("spec", {}).get("http", []):
        if "mirror" in route:
            route["mirrorPercentage"] = {"value": 0}


class Bench:
    """A live version, a shadow that faults can be planted in, and where both write."""

    def __init__(self, database: Database, parent: Path, models: Path, stack: ExitStack) -> None:
        self.database, self.parent = database, parent
        # Nothing is judged before it is complete.
        self.settings = database.settings.model_copy(update={"settle_seconds": 0.0})
        self.env = database.variables | {"MODEL_DIRECTORY": str(models)}
        shadow = {"ARM": "rf", "ROLE": "shadow", "MODEL_DIRECTORY": str(models / "rf")}
        # At once, because Python takes its time to start.
        with ThreadPoolExecutor() as threads:
            live = threads.submit(Server, parent / "svc", self.env | {"ARM": "svc"})
            other = threads.submit(
                Server, parent / "rf", self.env | shadow, "measure.baselines:app"
            )
        self.live = stack.enter_context(live.result())
        self.shadow = stack.enter_context(other.result())

    @contextmanager
    def mesh(self, config: Any) -> Iterator[Proxy]:
        with proxy(HERE, config, {"iris-svc": self.live, "iris-rf": self.shadow}) as running:
            yield running

    def plant(self, fault: str) -> None:
        httpx.post(f"{self.shadow.url}/fault/{fault}", timeout=60).raise_for_status()

    def report(self) -> Report:
        """Ships what is written, and returns the report on it."""
        self.database.ship(self.parent)
        with self.database.engine.begin() as connection:
            return judge(connection, self.settings)

    def calls(self, arm: str) -> int:
        self.database.ship(self.parent)
        counted = "SELECT count(*) FROM records WHERE kind <> 'event' AND body ->> 'arm' = :arm"
        return int(self.database.value(counted, arm=arm))


def send(mesh: Proxy, contents: Sequence[bytes], path: str = "/predict") -> list[Run]:
    """Sends no more at a time than the shadow has places for, so that each copy finds one."""
    runs = []
    for first in range(0, len(contents), PLACES):
        part = contents[first : first + PLACES]
        runs.append(
            send_at_once(mesh.url, part, path, deadline_seconds=PATIENCE_SECONDS, connections=8)
        )
        wait_until_copied(mesh)
    return runs


def send_at_once(
    url: str, contents: Sequence[bytes], path: str, deadline_seconds: float, connections: int
) -> Run:
    return asyncio.run(
        closed_loop(
            [Request(f"{url}{path}", each) for each in contents],
            connections=connections,
            count=len(contents),
            deadline_seconds=deadline_seconds,
            keep_bodies=True,
        )
    )


def wait_until_copied(mesh: Proxy) -> None:
    """Waits until no copy is on its way, without pauses: that is asked after every few requests."""
    # All counters together take ten times as long.
    query = f"filter={quote(re.escape(SHADOW))}.upstream_rq_active$&format=json"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while fetch(f"{mesh.admin_url}/stats?{query}")["stats"][0]["value"]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"copies are on their way for {PATIENCE_SECONDS} s")


def counted(mesh: Proxy, names: Sequence[str]) -> int:
    return sum(mesh.stat(f"{SHADOW}.{name}") for name in names)
