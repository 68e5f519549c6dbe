"""Measures what concurrent writers and kills lose, and how many champions a model gets."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any
from uuid import uuid4

import httpx

from tools.measure.load import Request, Run, closed_loop
from tools.measure.results import Results, quick_argument
from tools.measure.server import Server, interleave, median_and_spread, wait_until

from .processes import Postgres, migrate, run_api, run_postgres

HERE = Path(__file__).parents[1]
CLAIM = (
    "Concurrent writers and kills lose nothing that was acknowledged, and a model never has two "
    "champions."
)
WRITERS = 50
# How many write at once, for the plot.
CROWDS = (1, 2, 5, 10, 20, WRITERS)
RIVALS = 10
TRIES = 10
# The constraints by which the database rejects duplicates; the control runs without them.
CONSTRAINTS = (
    "ALTER TABLE projects DROP CONSTRAINT uq_projects_project_name",
    "DROP INDEX one_champion_a_model",
)
# PostgreSQL does not log this table, so a kill at any moment empties it.
UNLOGGED = "ALTER TABLE experiments SET UNLOGGED"
API = "/v0.1/api"
JSON = {"content-type": "application/json"}
# The counts that must be 0, and must be above 0 in the controls.
NONE = (
    "evaluations_lost",
    "second_champions",
    "duplicate_projects",
    "sqlite_evaluations_missing",
    "sqlite_requests_refused",
    "rows_lost",
)
# The targets of the figures.
BOUNDS: dict[str, tuple[str, float]] = {
    "writes_per_second": (">=", 200),
    "merge_p99_ms": ("<=", 200),
    "page_p99_ms": ("<=", 100),
    "list_p99_ms": ("<=", 100),
    "start_seconds": ("<=", 2),
    "memory_mb": ("<=", 128),
}


@dataclass(frozen=True)
class Size:
    """The size of a measurement; nothing is timed if `experiments` is 0."""

    shared: int
    models: int
    projects: int
    kills: int
    rows_a_kill: int
    experiments: int
    rounds: int
    requests: int


FULL = Size(20, 50, 50, 5, 500, 10_000, 5, 1_000)
QUICK = Size(1, 1, 1, 1, 20, 0, 0, 0)


# --- requests -------------------------------------------------------------------------------------


def post(url: str, path: str, **body: Any) -> Request:
    return Request(f"{url}{API}{path}", json.dumps(body).encode())


def send(requests: list[Request], connections: int, *, must: int | None = None) -> Run:
    """Sends each request once; exits if a response has another status than `must`."""
    load = closed_loop(
        requests,
        connections=connections,
        count=len(requests),
        deadline_seconds=30,
        keep_bodies=True,
    )
    run = asyncio.run(load)
    if must is not None and run.statuses[must] != len(requests):
        raise SystemExit(f"error: not every request got {must}: {run.statuses} {run.errors}")
    return run


def json_bodies(run: Run) -> list[dict[str, Any]]:
    return [json.loads(body) for body in run.bodies or []]


def rows_of(url: str, path: str) -> Iterator[dict[str, Any]]:
    """Yields all rows of a list, page by page."""
    offset, total = 0, 1
    while offset < total:
        address = f"{url}{API}{path}?limit=25&offset={offset}"
        page = httpx.get(address, timeout=30).raise_for_status().json()
        yield from page["rows"]
        offset, total = offset + 25, page["total"]


def add_models(url: str, count: int) -> list[str]:
    """Adds models to a new project and returns their ids."""
    (project,) = json_bodies(send([post(url, "/projects", project_name=uuid4().hex)], 1, must=201))
    project_id = project["project_id"]
    requests = [
        post(url, "/models", project_id=project_id, model_name=f"model {number}")
        for number in range(count)
    ]
    return [model["model_id"] for model in json_bodies(send(requests, 8, must=201))]


def new_experiment(url: str, model_id: str) -> Request:
    evaluations = {"accuracy": 0.9556, "log_loss": 0.1402, "precision_macro": 0.9608}
    version = uuid4().hex
    return post(
        url, "/experiments", model_id=model_id, model_version_id=version, evaluations=evaluations
    )


def add_experiments(url: str, model_ids: list[str]) -> list[str]:
    """Adds an experiment to each model and returns their ids."""
    run = send([new_experiment(url, model_id) for model_id in model_ids], 16, must=201)
    return [experiment["experiment_id"] for experiment in json_bodies(run)]


# --- concurrent writers ---------------------------------------------------------------------------


def add_evaluations(
    url: str, targets: list[str], size: Size, *, writers: int = WRITERS, must: int | None = None
) -> tuple[Run, int]:
    """Has writers add to the same experiments; returns how many evaluations were stored."""
    (model_id,) = add_models(url, 1)
    merges = [
        post(target, f"/experiments/evaluations/{shared}", evaluations={f"writer {number}": 1})
        for shared in add_experiments(url, [model_id] * size.shared)
        for number, target in zip(range(writers), cycle(targets), strict=False)
    ]
    run = send(merges, writers, must=must)
    rows = rows_of(url, f"/experiments/model-id/{model_id}")
    return run, sum(key.startswith("writer") for row in rows for key in row["evaluations"])


def promote_rivals(url: str, targets: list[str], size: Size) -> tuple[Run, int]:
    """Promotes all rivals of a model at once; returns the champions beyond one per model."""
    model_ids = add_models(url, size.models)
    rivals = add_experiments(url, [model_id for model_id in model_ids for _ in range(RIVALS)])
    promotions = [
        post(target, f"/experiments/promote/{rival}", expected_champion=None)
        for rival, target in zip(rivals, cycle(targets), strict=False)
    ]
    run = send(promotions, RIVALS)
    found = [
        row for model_id in model_ids for row in rows_of(url, f"/experiments/model-id/{model_id}")
    ]
    champions = [row for row in found if row["stage"] == "champion"]
    return run, len(champions) - size.models


def add_projects(url: str, targets: list[str], size: Size) -> tuple[Run, int]:
    """Has all writers add the same projects; returns the rows beyond one per project."""
    names = [uuid4().hex for _ in range(size.projects)]
    same = [
        post(target, "/projects", project_name=name)
        for name in names
        for _, target in zip(range(WRITERS), cycle(targets), strict=False)
    ]
    run = send(same, WRITERS)
    rows = [row for row in rows_of(url, "/projects/all") if row["project_name"] in set(names)]
    return run, len(rows) - size.projects


def count_conflicts(url: str, size: Size) -> dict[str, int]:
    """Counts the conflicts that concurrent writers cause at one server."""
    evaluations, stored = add_evaluations(url, [url], size, must=200)
    _, second_champions = promote_rivals(url, [url], size)
    _, duplicate_projects = add_projects(url, [url], size)
    return {
        "evaluations_lost": evaluations.statuses[200] - stored,
        "second_champions": second_champions,
        "duplicate_projects": duplicate_projects,
    }


def lost_percent(url: str, size: Size, writers: int) -> float:
    """Returns the share of acknowledged evaluations that were lost."""
    run, stored = add_evaluations(url, [url], size, writers=writers, must=200)
    return 100 * (run.sent - stored) / run.sent


def count_refusals(urls: list[str], size: Size) -> dict[str, int]:
    """Counts what two processes writing to one SQLite file cost each other.

    A late writer there is refused, so a caller that does not retry loses its write.
    """
    evaluations, stored = add_evaluations(urls[0], urls, size)
    promotions, _ = promote_rivals(urls[0], urls, size)
    projects, _ = add_projects(urls[0], urls, size)
    return {
        "sqlite_evaluations_missing": evaluations.sent - stored,
        "sqlite_requests_refused": sum(
            run.statuses[503] for run in (evaluations, promotions, projects)
        ),
    }


def until_it_shows(count: Callable[[], dict[str, int]]) -> dict[str, int]:
    """Repeats a control until every count shows its fault, because the races depend on timing."""
    total: Counter[str] = Counter()
    for _ in range(TRIES):
        total.update(count())
        if all(total.values()):
            break
    return dict(total)


# --- kills ----------------------------------------------------------------------------------------


def write_through_kills(postgres: Postgres, apis: list[Server], rows: int) -> list[list[str]]:
    """Kills PostgreSQL, then the APIs, during writes; returns the acknowledged ids."""
    acknowledged: list[list[str]] = [[] for _ in apis]
    stopping = Event()

    def write(url: str, model_id: str, ids: list[str]) -> None:
        with httpx.Client(timeout=10) as client:
            while not stopping.is_set():
                request = new_experiment(url, model_id)
                with suppress(httpx.TransportError):
                    response = client.post(request.url, content=request.body, headers=JSON)
                    if response.status_code == 201:
                        ids.append(response.json()["experiment_id"])
                        continue
                # Retrying at once would take the CPU that PostgreSQL needs for its recovery.
                stopping.wait(0.5)

    with ThreadPoolExecutor(WRITERS) as threads:
        for api, ids in zip(apis, acknowledged, strict=True):
            (model_id,) = add_models(api.url, 1)
            for _ in range(8):
                threads.submit(write, api.url, model_id, ids)
        try:
            wait_until(lambda: min(map(len, acknowledged)) >= rows, "rows before the kill", 120)
            postgres.kill()
            more = [len(ids) + rows for ids in acknowledged]
            postgres.start()
            wait_until(
                lambda: all(len(ids) >= n for ids, n in zip(acknowledged, more, strict=True)),
                "rows after the kill",
                120,
            )
            for api in apis:
                api.kill()
        finally:
            stopping.set()
    return acknowledged


def count_lost_rows(
    postgres: Postgres, databases: list[dict[str, str]], apis: list[Server], size: Size
) -> list[tuple[int, int]]:
    """Returns how many rows each database acknowledged around the kills, and how many it lost.

    The first kill ends the running APIs; each further one starts new ones.
    """
    ids: list[set[str]] = [set() for _ in databases]
    for kill in range(size.kills):
        with ExitStack() as stack:
            if kill:
                apis = [stack.enter_context(run_api(database)) for database in databases]
            added = write_through_kills(postgres, apis, size.rows_a_kill)
        for known, new in zip(ids, added, strict=True):
            known.update(new)
    found = [
        {row for (row,) in postgres.select(database, "SELECT experiment_id::text FROM experiments")}
        for database in databases
    ]
    return [(len(known), len(known - stored)) for known, stored in zip(ids, found, strict=True)]


# --- times ----------------------------------------------------------------------------------------


def writes_per_second(url: str, model_id: str, count: int) -> float:
    """Returns how many experiments 16 writers add per second."""
    return send([new_experiment(url, model_id) for _ in range(count)], 16, must=201).per_second


def merge_p99_ms(url: str, experiment_id: str, count: int) -> float:
    """Returns the latency of 16 writers to the same experiment."""
    path = f"/experiments/evaluations/{experiment_id}"
    merge = [post(url, path, evaluations={f"metric {n % 20}": n}) for n in range(count)]
    return send(merge, 16, must=200).p99_ms


def read_p99_ms(url: str, path: str, count: int) -> float:
    """Returns the latency of a single reader."""
    return send([Request(f"{url}{path}")] * (count // 10), 1, must=200).p99_ms


@contextmanager
def embedded(app: str = "app.main:app") -> Iterator[list[str]]:
    """Runs two processes of the API on one SQLite file."""
    with TemporaryDirectory() as name:
        database = {"DATABASE_URL": f"sqlite:///{name}/model_db.sqlite"}
        with run_api(database, app) as one, run_api(database, app) as another:
            yield [one.url, another.url]


def measure_times(api: Server, sqlite_url: str, size: Size) -> dict[str, float]:
    """Times writes and reads in a registry of many experiments."""
    model_ids = add_models(api.url, 100)
    (sqlite_model_id,) = add_models(sqlite_url, 1)
    experiment_ids = add_experiments(api.url, model_ids * (size.experiments // 100))
    listed = f"{API}/experiments/model-id/{model_ids[0]}?limit=25"
    measured = interleave(
        {
            "writes_per_second": partial(writes_per_second, api.url, model_ids[0], size.requests),
            "sqlite_writes_per_second": partial(
                writes_per_second, sqlite_url, sqlite_model_id, size.requests
            ),
            "merge_p99_ms": partial(merge_p99_ms, api.url, experiment_ids[0], size.requests),
            "page_p99_ms": partial(read_p99_ms, api.url, "/", size.requests),
            "list_p99_ms": partial(read_p99_ms, api.url, listed, size.requests),
        },
        size.rounds,
    )
    return {name: median_and_spread(values).median for name, values in measured.items()}


def claim_holds(counts: dict[str, int]) -> bool:
    return not any(counts[name] for name in NONE)


def main() -> int:
    arguments = quick_argument(__doc__)
    size = QUICK if arguments.quick else FULL
    figures: dict[str, float] = {}
    series: dict[str, list[float]] = {}
    bounds: dict[str, tuple[str, float]] = {}
    with ExitStack() as stack:
        with ThreadPoolExecutor() as threads:
            arms = [
                threads.submit(stack.enter_context, arm)
                for arm in (embedded(), embedded("measure.baselines:late"))
            ]
            postgres = stack.enter_context(run_postgres())
            database = postgres.new_database()
            migrate(database)
            defenceless = postgres.new_database(database)
            postgres.change(defenceless, *CONSTRAINTS, UNLOGGED)
            api = stack.enter_context(run_api(database))
            careless = stack.enter_context(run_api(defenceless, "measure.baselines:careless"))
            sqlite, late = (arm.result() for arm in arms)
        counts = count_conflicts(api.url, size) | count_refusals(sqlite, size)
        control = until_it_shows(lambda: count_conflicts(careless.url, size))
        control |= until_it_shows(lambda: count_refusals(late, size))
        if size.experiments:
            series = {
                "writers": list(map(float, CROWDS)),
                "lost_percent": [lost_percent(api.url, size, n) for n in CROWDS],
                "careless_lost_percent": [lost_percent(careless.url, size, n) for n in CROWDS],
            }
            figures = measure_times(api, sqlite[0], size)
            figures |= {"start_seconds": api.start_seconds, "memory_mb": api.memory_mb()}
            bounds = BOUNDS
        # Recovery then replays the writes, but not the creation of the databases.
        postgres.execute("CHECKPOINT")
        (acknowledged, lost), (_, control["rows_lost"]) = count_lost_rows(
            postgres, [database, defenceless], [api, careless], size
        )
    counts |= {"rows_acknowledged": acknowledged, "rows_lost": lost, "kills": 2 * size.kills}
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        figures=figures,
        control=control,
        series=series,
        holds=claim_holds(counts) and all(control.values()),
        targets={**dict.fromkeys(NONE, ("==", 0)), **bounds},
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
