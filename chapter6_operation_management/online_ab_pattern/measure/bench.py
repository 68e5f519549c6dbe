"""Runs both versions, a mesh in front of them and the switch, and sends what users would send."""

import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tools.measure.load import Request
from tools.measure.server import wait_until
from tools.measure.servers import Process
from tools.mesh.proxy import Proxy, proxy

from ..app.experiment import Experiment
from ..app.judge import Report, judge
from ..app.mesh import weigh
from ..app.runs import Run, begin, last
from ..app.written import read
from .processes import BODY, HERE, PACKAGE, ROOT, Database, Server, send

SHIPPED = HERE / "experiment/experiment.yml"
numbers = count()


def users(size: int) -> list[str]:
    """Returns IDs that no simulated user has had before."""
    batch = next(numbers)
    return [f"simulated-{batch}-{number}" for number in range(size)]


class Bench:
    """Both versions, of which faults can be planted in the new one, and where both write."""

    def __init__(self, database: Database, parent: Path, models: Path, stack: ExitStack) -> None:
        self.database, self.parent, self.stack = database, parent, stack
        # Nothing is judged before it is complete.
        self.settings = database.settings.model_copy(update={"settle_seconds": 0.0})
        self.settings.experiment_file = parent / "experiment.yml"
        self.env = database.variables | {"MODEL_DIRECTORY": str(models)}
        rf = {"ARM": "rf", "MODEL_DIRECTORY": str(models / "rf")}
        # At once, because Python takes its time to start.
        with ThreadPoolExecutor() as threads:
            old = threads.submit(Server, parent / "svc", self.env | {"ARM": "svc"})
            new = threads.submit(Server, parent / "rf", self.env | rf, "measure.baselines:app")
        self.svc = stack.enter_context(old.result())
        self.rf = stack.enter_context(new.result())

    @contextmanager
    def mesh(self, config: Any) -> Iterator[Proxy]:
        with proxy(HERE, config, {"iris-svc": self.svc, "iris-rf": self.rf}) as running:
            yield running

    def write(self, text: str | None = None) -> Experiment:
        """Writes an experiment that is another one than the last, whatever it says."""
        text = SHIPPED.read_text("utf-8") if text is None else text
        self.settings.experiment_file.write_text(f"{text}\n# {uuid4()}\n", "utf-8")
        return read(self.settings.experiment_file, Experiment)[0]

    def begin(self, text: str | None = None) -> Experiment:
        """Writes an experiment and begins it, as the switch does."""
        experiment = self.write(text)
        with self.database.engine.begin() as connection:
            begin(connection, read(self.settings.experiment_file, Experiment)[1])
        return experiment

    def run(self) -> Run | None:
        with self.database.engine.begin() as connection:
            return last(connection)

    def report(self) -> Report:
        """Ships what is written, and returns the report on it."""
        self.database.ship(self.parent)
        with self.database.engine.begin() as connection:
            return judge(connection, self.settings)

    def plant(self) -> None:
        """Makes the new version fail, or well again."""
        httpx.post(f"{self.rf.url}/fault", timeout=60).raise_for_status()

    def switch(self, mesh: Proxy, **env: str) -> "Switch":
        """Starts the switch, and waits until it has begun what is written."""
        settings = {"EXPERIMENT_FILE": str(self.settings.experiment_file), "SETTLE_SECONDS": "0"}
        switch = Switch(self.parent, self.env | settings | {"ADMIN_URL": mesh.admin_url} | env)
        self.stack.enter_context(switch)
        wait_until(switch.alive.exists, f"the switch to look ({switch.log})", 60)
        return switch


class Switch(Process):
    """The service `switch`."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self.alive = directory / f"{uuid4().hex}.alive"
        super().__init__(
            [sys.executable, "-m", f"{PACKAGE}.app.switch"],
            cwd=ROOT,
            log=directory / f"{uuid4().hex}.txt",
            env={"ALIVE_FILE": str(self.alive), **env},
        )


def ask(mesh: Proxy, who: Sequence[str]) -> list[dict[str, Any]]:
    """Sends a prediction for each user; an error has no mode."""
    url = f"{mesh.url}/predict"
    run = send([Request(url, BODY, {"x-user-id": user}) for user in who], len(who))
    pairs = zip(run.status_of, run.bodies or [], strict=True)
    return [json.loads(body) if status == 200 else {} for status, body in pairs]


def modes(answers: Sequence[dict[str, Any]]) -> list[str]:
    return [answer.get("mode", "") for answer in answers]


def tell(mesh: Proxy, who: Sequence[str], answers: Sequence[dict[str, Any]]) -> int:
    """Sends an event for each answer, and returns how many were taken."""
    requests = [
        Request(
            f"{mesh.url}/event",
            json.dumps(
                {"job_id": job["job_id"], "event_id": "1", "event": "accepted", "value": "yes"}
            ).encode(),
            {"x-user-id": user},
        )
        for user, job in zip(who, answers, strict=True)
    ]
    return send(requests, len(requests)).statuses[202]


def raise_to(mesh: Proxy, step: int) -> None:
    """Gives the new version this many of 100 users, as a change of the manifest does."""
    weigh(mesh.admin_url, "svc", 100 - step)
    weigh(mesh.admin_url, "rf", step)
