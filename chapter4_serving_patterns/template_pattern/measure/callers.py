"""Runs rendered services, and asks what a caller of each version gets."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

from tools.measure.server import Server
from tools.measure.servers import run_uvicorn

from ..contract import CLAUSES, broken
from .baselines import is_healthy
from .files import FILES, HERE, Counts, rendered
from .releases import BREAKING, SECOND, changed

CORES = os.cpu_count() or 1


class Outcome(NamedTuple):
    """What callers of a service get."""

    clauses_kept: int
    # What the client of the first version prints; empty if it fails.
    printed: str
    is_healthy: bool


def models_of(name: str) -> Path:
    """Returns the directory with the model that `make measure` has trained for a service."""
    return HERE / "services" / name / "models"


@contextmanager
def run(service: Path, models: Path) -> Iterator[Server]:
    """Runs a service with a trained model."""
    env = {"MODEL_DIRECTORY": str(models)}
    with run_uvicorn("app.main:app", cwd=service, env=env, ready="/health") as server:
        yield server


def outcome(service: Path) -> Outcome:
    """Runs a service and returns what it does; the first version's client is in services/."""
    with run(service, models_of(service.name)) as server:
        kept = len(CLAUSES) - len(list(broken(server.url)))
        client = subprocess.run(
            [sys.executable, str(HERE / "services" / service.name / "client.py")],
            env=os.environ | {"PORT": server.url.rpartition(":")[2]},
            capture_output=True,
            text=True,
            check=False,
        )
        printed = client.stdout if client.returncode == 0 else ""
        return Outcome(kept, printed, is_healthy(server.url))


def outcomes(services: Sequence[Path]) -> list[Outcome]:
    """Runs services, as many at once as there are cores."""
    with ThreadPoolExecutor(CORES) as pool:
        return list(pool.map(outcome, services))


def count_callers(folder: Path) -> tuple[Counts, Counts, list[float]]:
    """Runs the services of each version of the template, and asks what a caller asks."""
    names = [path.stem for path in FILES]
    first = [HERE / "services" / name for name in names]
    second = rendered(folder / "v2", changed(folder / "template", SECOND))
    broken = []
    for number, changes in enumerate(BREAKING.values()):
        template = changed(folder / f"template-{number}", [*SECOND, *changes])
        # Clients of all services meet the first of these changes, callers of one all others.
        broken += rendered(folder / f"v2-{number}", template, FILES if number == 0 else FILES[:1])
    found = outcomes([*first, *second, *broken])
    of_first, of_second, rest = (
        found[: len(names)],
        found[len(names) : 2 * len(names)],
        found[2 * len(names) :],
    )
    renamed, others = rest[: len(names)], rest[len(names) :]
    of_breaking = [renamed[0], *others]
    counts = {
        "contract_clauses_kept": sum(each.clauses_kept for each in of_first),
        "v1_clients_pass_v2": count_same(of_first, of_second),
        "breaking_changes_caught": sum(each.clauses_kept < len(CLAUSES) for each in of_breaking),
    }
    control = {
        "contract_clauses_kept": sum(each.clauses_kept for each in renamed),
        "v1_clients_pass_v2": count_same(of_first, renamed),
        "breaking_changes_caught": sum(not each.is_healthy for each in of_breaking),
    }
    return counts, control, [float(each.clauses_kept) for each in (of_second[0], *of_breaking)]


def count_same(first: list[Outcome], later: list[Outcome]) -> int:
    """Returns how many clients print what they printed with the first version."""
    pairs = zip(first, later, strict=True)
    return sum(one.printed == other.printed != "" for one, other in pairs)


def first_answer_seconds(folder: Path) -> float:
    """Returns the time from a parameter file to the first prediction, without Docker."""
    began = time.perf_counter()
    at_work = partial(subprocess.run, check=True, capture_output=True)
    at_work([sys.executable, "-m", "builder", str(FILES[0]), "--output", str(folder)], cwd=HERE)
    service = folder / FILES[0].stem
    at_work([sys.executable, "-m", "train"], cwd=service)
    with run(service, service / "models") as server:
        connection = HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=10)
        connection.request("POST", "/predict", (service / "sample.json").read_bytes())
        answer = json.loads(connection.getresponse().read())
        connection.close()
    if "prediction" not in answer:
        raise SystemExit(f"error: the first answer is {answer}")
    return time.perf_counter() - began
