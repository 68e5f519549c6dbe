"""batch_pattern: real PostgreSQL and real jobs, some of which fail, are killed or lose it."""

import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import psycopg2
import pytest
from psutil import Process

from chapter4_serving_patterns.batch_pattern.app import chunks, job
from chapter4_serving_patterns.batch_pattern.app.model import Model
from chapter4_serving_patterns.batch_pattern.app.rows import read
from chapter4_serving_patterns.batch_pattern.app.schema import FEATURES
from chapter4_serving_patterns.batch_pattern.app.seed import seed
from chapter4_serving_patterns.batch_pattern.measure.__main__ import HERE, QUICK, claim_holds
from chapter4_serving_patterns.batch_pattern.measure.database import PACKAGE, ROOT, Database
from chapter4_serving_patterns.batch_pattern.train.__main__ import write
from tools.measure.results import load as load_results
from tools.measure.servers import run_uvicorn
from tools.run.processes import family_of, pause_all, unpause_all

ROWS, CHUNK_ROWS = 10_000, 1_000
DONE, UNFINISHED, HOPELESS = job.DONE, job.UNFINISHED, job.HOPELESS


class CountedModel(Model):
    """Counts the rows that it predicts, and does something before a call, given by its number."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, FEATURES)
        self.rows = self.calls = 0
        self.before: dict[int, Callable[[], object]] = {}

    def predict(self, rows: Any) -> Any:
        self.rows += len(rows)
        self.calls += 1
        self.before.get(self.calls, lambda: None)()
        return super().predict(rows)


def fail() -> None:
    raise ValueError("the model has failed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write(directory, 1)
    return directory


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Database]:
    with Database(models, ROWS, CHUNK_ROWS=str(CHUNK_ROWS)) as database:
        yield database


@pytest.fixture
def database(server: Database) -> Database:
    """A database with items, of which none is predicted."""
    server.forget()
    server.value("DELETE FROM items WHERE item_id > :rows", rows=ROWS)
    return server


@pytest.fixture
def model(models: Path) -> CountedModel:
    return CountedModel(models)


def run(database: Database, model: Model, stopping: Event | None = None, **settings: Any) -> int:
    changes = {"chunk_rows": CHUNK_ROWS, **settings}
    own = database.settings.model_copy(update=changes)
    return job.run(own, model, stopping or Event())


def stored(database: Database) -> int:
    found: int = database.value("SELECT count(*) FROM predictions")
    return found


def last_state(database: Database) -> Any:
    with database.engine.connect() as connection:
        return chunks.states(connection)[0]


# --- every row once -------------------------------------------------------------------------------


def test_a_job_stores_what_the_model_predicts_and_says_which_model(
    database: Database, model: CountedModel, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert run(database, model) == DONE
    assert model.rows == stored(database) == ROWS
    with database.engine.connect() as connection:
        cursor = connection.connection.cursor()
        _, rows = read(cursor, "another model", 1, 100)
        cursor.execute(
            "SELECT probabilities, label, model_version, job_id FROM predictions "
            "WHERE item_id <= 100 ORDER BY item_id"
        )
        found, labels, versions, job_ids = zip(*cursor.fetchall(), strict=True)
        cursor.execute('SELECT "values" FROM items WHERE item_id <= 100 ORDER BY item_id')
        sent = np.array([values for (values,) in cursor.fetchall()], np.float32)
        np.testing.assert_array_equal(rows, sent)
    expected = model.predict(rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert [*labels] == expected.argmax(axis=1).tolist()
    assert {*versions} == {f"1-{model.metadata['sha256'][:12]}"}
    assert {*job_ids} == {last_state(database).job_id}
    lines = [record.getMessage() for record in caplog.records]
    assert sum(" of 10000 rows" in line for line in lines) == 11


def test_another_run_predicts_only_what_is_new(database: Database, model: CountedModel) -> None:
    assert run(database, model) == DONE
    assert run(database, model) == DONE
    assert model.rows == ROWS
    database.value('INSERT INTO items ("values") SELECT "values" FROM items WHERE item_id <= 3')
    assert run(database, model) == DONE
    assert model.rows == stored(database) == ROWS + 3
    assert last_state(database).rows == 3


def test_another_model_predicts_every_row_again(database: Database, model: CountedModel) -> None:
    assert run(database, model) == DONE
    model.metadata |= {"sha256": "0" * 64}
    assert run(database, model) == DONE
    assert stored(database) == 2 * ROWS


def test_processes_at_once_share_one_job(database: Database, models: Path) -> None:
    several = [CountedModel(models) for _ in range(3)]
    with ThreadPoolExecutor() as threads:
        codes = [each.result() for each in [threads.submit(run, database, m) for m in several]]
    assert codes == [DONE] * 3
    assert sum(model.rows for model in several) == stored(database) == ROWS
    assert database.value("SELECT count(*) FROM jobs") == 1


def test_a_process_takes_over_what_another_has_not_committed(
    database: Database, model: CountedModel, models: Path
) -> None:
    begun, killed = Event(), Event()
    other = CountedModel(models)

    def wait_for_the_kill() -> None:
        begun.set()
        killed.wait(60)
        # The connection of a killed process ends like this.
        database.value(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name LIKE 'job %' AND state = 'idle in transaction'"
        )

    other.before[1] = wait_for_the_kill
    stopping = Event()
    with ThreadPoolExecutor() as threads:
        first = threads.submit(run, database, other, stopping)
        begun.wait(60)
        second = threads.submit(run, database, model)
        stopping.set()
        killed.set()
        assert (first.result(), second.result()) == (UNFINISHED, DONE)
    assert model.rows == stored(database) == ROWS
    assert last_state(database).attempts == ROWS // CHUNK_ROWS + 1


def test_a_job_that_is_told_to_stop_finishes_its_chunk(
    database: Database, model: CountedModel
) -> None:
    stopping = Event()
    model.before[3] = stopping.set
    assert run(database, model, stopping) == UNFINISHED
    assert model.rows == stored(database) == 3 * CHUNK_ROWS
    assert run(database, model) == DONE
    assert model.rows == stored(database) == ROWS


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry", "code", "predicted", "found"),
    [
        ("failed", DONE, ROWS + CHUNK_ROWS, ROWS),
        ("all", DONE, ROWS + 4 * CHUNK_ROWS, ROWS),
        ("next", UNFINISHED, ROWS, ROWS - CHUNK_ROWS),
    ],
)
def test_each_policy_repeats_exactly_what_it_says_after_a_chunk_has_failed(
    database: Database, model: CountedModel, retry: str, code: int, predicted: int, found: int
) -> None:
    model.before[4] = fail
    assert run(database, model, retry=retry) == code
    assert (model.rows, stored(database)) == (predicted, found)
    assert run(database, model, retry=retry) == DONE
    assert model.rows == predicted + ROWS - found
    assert stored(database) == ROWS


@pytest.mark.parametrize("retry", ["failed", "all"])
def test_a_chunk_that_always_fails_is_given_up_with_its_reason(
    database: Database, models: Path, retry: str
) -> None:
    class UnableModel(CountedModel):
        def predict(self, rows: Any) -> Any:
            if rows[0].tolist() == first:
                fail()
            return super().predict(rows)

    first = database.value('SELECT "values" FROM items WHERE item_id = 1')
    first = np.array(first, np.float32).tolist()
    assert run(database, UnableModel(models), retry=retry) == UNFINISHED
    state = last_state(database)
    assert (state.failed, state.done, state.missing) == (1, 9, CHUNK_ROWS)
    assert state.reason == "ValueError: the model has failed"
    assert stored(database) == ROWS - CHUNK_ROWS


def test_a_chunk_that_kills_its_processes_is_given_up_and_the_others_are_done(
    database: Database, model: CountedModel
) -> None:
    with database.engine.connect() as connection:
        job_id = chunks.plan(connection, chunks.version_of(model.metadata), CHUNK_ROWS)
    database.value(
        "INSERT INTO attempts (chunk_id) SELECT min(chunk_id) FROM chunks, generate_series(1, 3)"
        " GROUP BY generate_series"
    )
    assert run(database, model) == UNFINISHED
    state = last_state(database)
    assert (state.job_id, state.failed, state.missing) == (job_id, 1, CHUNK_ROWS)
    assert state.reason == "given up: 3 attempts have killed their process"


def test_a_job_goes_on_when_its_database_is_back(database: Database, model: CountedModel) -> None:
    def restart() -> None:
        database.kill()
        database.start()

    model.before[3] = restart
    assert run(database, model) == DONE
    assert stored(database) == ROWS
    # Exactly the chunk whose predictions could not be stored.
    assert model.rows == ROWS + CHUNK_ROWS


@pytest.mark.parametrize("is_hung", [False, True], ids=["dead", "hung"])
def test_a_job_and_the_api_give_up_without_a_database(
    models: Path, model: CountedModel, is_hung: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with Database(models, ROWS) as own:
        model.before[3] = own.kill
        if is_hung:
            model.before[3] = lambda: pause_all(partial(family, own))
        assert run(own, model, database_deadline_seconds=0.5) == UNFINISHED
        assert "PostgreSQL does not answer" in caplog.text
        env = own.variables | {"DATABASE_DEADLINE_SECONDS": "0.5"}
        with api(env, "/health") as server, httpx.Client(base_url=server.url, timeout=60) as client:
            answers = {
                path: client.get(path) for path in ("/ready", "/data/all", "/jobs", "/health")
            }
            assert [answer.status_code for answer in answers.values()] == [503, 503, 503, 200]
            assert answers["/ready"].headers["retry-after"] == "1"
        if is_hung:
            unpause_all(family(own))


def family(database: Database) -> list[Process]:
    pid = database.process.pid
    return [Process(pid), *family_of(pid)]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"MODEL_DIRECTORY": "/nowhere"}, "no usable model in /nowhere"),
        ({"CHUNK_ROWS": "0"}, "CHUNK_ROWS: Input should be greater than 0"),
        ({"CHUNK_ROWS": "many"}, "CHUNK_ROWS: Input should be a valid integer"),
        ({"RETRY": "never"}, "RETRY: Input should be 'failed', 'all' or 'next'"),
        ({"DATABASE_URL": "{url}/postgres"}, "the tables cannot be used, run python -m app.seed"),
    ],
    ids=str,
)
def test_what_no_retry_helps_ends_with_2_and_a_sentence(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    reason: str,
) -> None:
    url = database.variables["DATABASE_URL"].removesuffix("/batch")
    for name, value in {**database.variables, **variables}.items():
        monkeypatch.setenv(name, value.format(url=url))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(SystemExit) as ended:
        job.main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert ended.value.code == HOPELESS
    assert reason in caplog.text


@pytest.mark.parametrize(("window_seconds", "is_late"), [(3_600.0, False), (0.001, True)])
def test_a_job_says_beforehand_that_it_misses_its_window(
    database: Database,
    model: CountedModel,
    caplog: pytest.LogCaptureFixture,
    window_seconds: float,
    is_late: bool,
) -> None:
    states = []
    model.before[2] = lambda: states.append(last_state(database))
    assert run(database, model, window_seconds=window_seconds) == DONE
    (state,) = states
    assert (state.done, state.misses_window) == (1, is_late)
    assert state.forecast_seconds > 0
    assert ("it will not end within its window" in caplog.text) is is_late


# --- the table and the API ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        [0.0] * (FEATURES - 1),
        [0.0] * (FEATURES + 1),
        [],
        [None, *[0.0] * (FEATURES - 1)],
        None,
        [float("nan"), *[0.0] * (FEATURES - 1)],
        [float("inf"), *[0.0] * (FEATURES - 1)],
        [1e39, *[0.0] * (FEATURES - 1)],
        [17.0, *[0.0] * (FEATURES - 1)],
        [-0.5, *[0.0] * (FEATURES - 1)],
        [[0.0] * (FEATURES // 2)] * 2,
    ],
    ids=lambda values: str(values)[:25],
)
def test_the_table_refuses_what_the_model_cannot_take(database: Database, values: Any) -> None:
    connection = psycopg2.connect(
        database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    )
    with connection.cursor() as cursor, pytest.raises(psycopg2.Error):
        cursor.execute('INSERT INTO items ("values") VALUES (%s)', (values,))
    connection.close()


def test_seeding_again_or_at_once_adds_nothing(database: Database, models: Path) -> None:
    assert seed(database.settings) == 0
    with Database(models, 0) as empty, ThreadPoolExecutor() as threads:
        own = empty.settings.model_copy(update={"seed_rows": 25_000})
        counts = [each.result() for each in [threads.submit(seed, own) for _ in range(3)]]
        assert sorted(counts) == [0, 0, 25_000]
        assert empty.value("SELECT count(*) FROM items") == 25_000


def api(env: dict[str, str], ready: str = "/ready") -> Any:
    return run_uvicorn(f"{PACKAGE}.app.main:app", cwd=ROOT, env=env, ready=ready)


@pytest.fixture(scope="module")
def client(server: Database) -> Iterator[httpx.Client]:
    with api(server.variables) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def pages(client: httpx.Client, path: str, limit: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = client.get(path, params={"after": after, "limit": limit}).json()
        items += page["data"]
        after = page["next"]
    return items


def test_the_pages_of_the_api_hold_every_item_once(
    client: httpx.Client, database: Database, model: CountedModel
) -> None:
    stopping = Event()
    model.before[4] = stopping.set
    run(database, model, stopping)
    found = {
        path: pages(client, f"/data/{path}", 1_000) for path in ("all", "predicted", "unpredicted")
    }
    assert [item["item_id"] for item in found["all"]] == [*range(1, ROWS + 1)]
    assert len(found["predicted"]) == 4 * CHUNK_ROWS
    assert sorted(item["item_id"] for item in found["predicted"] + found["unpredicted"]) == [
        *range(1, ROWS + 1)
    ]
    for item in found["predicted"][:20]:
        expected = model.predict([item["values"]])[0]
        assert item["prediction"] == model.labels[expected.argmax()]
        assert item["probabilities"] == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-12)
    assert found["unpredicted"][0]["prediction"] is None
    state = client.get("/jobs").json()["data"][0]
    assert client.get(f"/jobs/{state['job_id']}").json() == state
    assert (state["rows"], state["missing"], state["waiting"]) == (ROWS, 6 * CHUNK_ROWS, 6)


def test_rows_are_stored_in_order_for_the_next_job(
    client: httpx.Client, database: Database, model: CountedModel
) -> None:
    run(database, model)
    rows = [[float(n % 17)] * FEATURES for n in range(1_000)]
    answer = client.post("/data", json={"data": rows})
    assert answer.status_code == 201
    ids = answer.json()["item_ids"]
    found = pages(client, "/data/unpredicted", 300)
    assert [item["item_id"] for item in found] == ids
    assert [item["values"] for item in found] == rows
    assert run(database, model) == DONE
    assert pages(client, "/data/unpredicted", 300) == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/data/all?after=-1", 422),
        ("/data/all?after=x", 422),
        (f"/data/all?after={2**63}", 422),
        ("/data/predicted?limit=0", 422),
        ("/data/unpredicted?limit=1001", 422),
        ("/data/unpredicted?limit=NaN", 422),
        ("/jobs/999999", 404),
        ("/jobs/0", 422),
        ("/jobs/x", 422),
        (f"/jobs/{2**63}", 422),
    ],
)
def test_bad_parameters_are_refused_with_the_reason(
    client: httpx.Client, path: str, status: int
) -> None:
    answer = client.get(path)
    assert (answer.status_code, "detail" in answer.json()) == (status, True)


@pytest.mark.parametrize(
    "body",
    [
        {"data": []},
        {"data": [[0.0] * FEATURES, [0.0] * (FEATURES - 1)]},
        {"data": [[0.0] * FEATURES, [17.0] * FEATURES]},
        {"data": [[True] * FEATURES]},
        {"data": [["1"] * FEATURES]},
        {"data": [[0.0] * FEATURES] * 1_001},
        {"rows": [[0.0] * FEATURES]},
        {},
    ],
    ids=lambda body: str(body)[:25],
)
def test_a_refused_request_stores_no_row(
    client: httpx.Client, database: Database, body: dict[str, Any]
) -> None:
    assert client.post("/data", json=body).status_code == 422
    assert database.value("SELECT count(*) FROM items") == ROWS


# --- the claim ------------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_controls_do_not(models: Path, tmp_path: Path) -> None:
    if not (HERE / "models/metadata.json").exists():
        write(HERE / "models", 1)
    command = [
        sys.executable,
        "-m",
        f"{PACKAGE}.measure",
        "--quick",
        "--output",
        str(tmp_path / "measure"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path)
    assert results.holds
    assert results.counts["kills"] == 6
    assert results.counts["rows_predicted_again"] == 2 * QUICK.chunk_rows
    assert results.control["duplicates"] == QUICK.book_rows
    # The jobs that commit at their end have predicted 2, 5, 8, 11, 14 and 17 chunks for nothing.
    assert results.control["rows_predicted_again"] == 57 * QUICK.chunk_rows
    for name in results.control:
        assert not claim_holds(results.counts | {name: results.control[name]}, QUICK)
