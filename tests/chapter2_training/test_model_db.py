"""Tests of the registry: real PostgreSQL and SQLite, many writers at once, and what kills them."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
import yaml
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError

from chapter2_training.model_db.app.database import connect
from chapter2_training.model_db.app.migrate import migrate as run_migrations
from chapter2_training.model_db.app.schema import MOST_BYTES
from chapter2_training.model_db.app.settings import Settings
from chapter2_training.model_db.app.tables import Experiment, Table
from chapter2_training.model_db.measure import __main__ as measure
from chapter2_training.model_db.measure.processes import (
    PACKAGE,
    ROOT,
    USER,
    Postgres,
    migrate,
    name_of,
    run_api,
    run_postgres,
)
from tools.measure.server import Server, wait_until
from tools.read.compose import load as load_compose

API = "/v0.1/api"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with run_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def migrated(postgres: Postgres) -> dict[str, str]:
    """A database with its tables, for others to be copied from: a migration is a process."""
    database = postgres.new_database()
    migrate(database)
    return database


@pytest.fixture(scope="module", params=["postgres", "sqlite"])
def database(
    request: pytest.FixtureRequest,
    postgres: Postgres,
    migrated: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Returns the settings of an API for an empty database of either kind."""
    if request.param == "postgres":
        return postgres.new_database(migrated)
    return {"DATABASE_URL": f"sqlite:///{tmp_path_factory.mktemp('sqlite')}/model_db.sqlite"}


@pytest.fixture(scope="module")
def url(database: dict[str, str]) -> Iterator[str]:
    with run_api(database) as server:
        yield server.url


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url + API, timeout=20) as client:
        yield client


def add_model(api: httpx.Client, model_name: str = "iris") -> str:
    """Adds a model to a project of its own, and returns its id."""
    project = api.post("/projects", json={"project_name": uuid4().hex}).json()
    body = {"project_id": project["project_id"], "model_name": model_name}
    answer = api.post("/models", json=body)
    assert answer.status_code == 201, answer.text
    model_id: str = answer.json()["model_id"]
    return model_id


def add_experiment(api: httpx.Client, model_id: str, **values: Any) -> str:
    body = {"model_id": model_id, "model_version_id": uuid4().hex, **values}
    answer = api.post("/experiments", json=body)
    assert answer.status_code == 201, answer.text
    experiment_id: str = answer.json()["experiment_id"]
    return experiment_id


def promote(api: httpx.Client, experiment_id: str, expected: str | None) -> httpx.Response:
    body = {"expected_champion": expected}
    return api.post(f"/experiments/promote/{experiment_id}", json=body)


def at_once(count: int, call: Any) -> list[httpx.Response]:
    """Makes so many calls at the same moment, each with its number."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, range(count)))


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


NOT_MIGRATED = "the database is not migrated: run python -m app.migrate"


def refusal_of(server: Server, path: str) -> str:
    """Returns why a server asks a caller to come again."""
    answer = httpx.get(f"{server.url}{path}")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    return str(answer.json()["detail"])


# --- the interface --------------------------------------------------------------------------------


def test_every_way_to_a_row_leads_to_what_was_stored(api: httpx.Client) -> None:
    names = {"project": f"Project {uuid4().hex}", "model": f"modèle.v1:{uuid4().hex}"}
    project = api.post(
        "/projects", json={"project_name": names["project"], "description": "What flowers are"}
    ).json()
    model = api.post(
        "/models", json={"project_id": project["project_id"], "model_name": names["model"]}
    ).json()
    version = uuid4().hex
    body = {
        "model_id": model["model_id"],
        "model_version_id": version,
        "parameters": {"C": 1.0, "kernel": "rbf", "nested": {"list": [1, None, True, "✿"]}},
        "training_dataset": "s3://data/iris/train",
        "validation_dataset": None,
        "test_dataset": "s3://data/iris/test",
        "evaluations": {
            "accuracy": 0.1,
            "tiny": 1e-300,
            "large": 1e300,
            "last": -1,
            "a": 2**63 - 1,
        },
        "artifact_file_paths": {"onnx": "s3://models/iris_svc.onnx"},
        "artifact_sha256": SHA256,
    }
    answer = api.post("/experiments", json=body)
    assert answer.status_code == 201
    experiment = answer.json()
    # Everything as it was given, the order of the keys included.
    assert list(experiment["evaluations"]) == list(body["evaluations"])
    assert experiment == body | {
        "experiment_id": experiment["experiment_id"],
        "stage": "candidate",
        "created_datetime": experiment["created_datetime"],
    }
    for row_id in (
        project["project_id"],
        model["model_id"],
        experiment["experiment_id"],
    ):
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", row_id)
    assert all(row["created_datetime"].endswith("Z") for row in (project, model, experiment))

    def one(path: str) -> Any:
        return api.get(path).raise_for_status().json()

    assert one(f"/projects/id/{project['project_id']}") == project
    assert one(f"/projects/name/{names['project']}") == project
    assert one(f"/models/id/{model['model_id']}") == model
    assert one(f"/experiments/id/{experiment['experiment_id']}") == experiment
    for path, row in {
        f"/models/name/{names['model']}": model,
        f"/models/project-id/{project['project_id']}": model,
        f"/models/project-name/{names['project']}": model,
        f"/experiments/model-version-id/{version}": experiment,
        f"/experiments/model-id/{model['model_id']}": experiment,
        f"/experiments/project-id/{project['project_id']}": experiment,
    }.items():
        assert one(path) == {"total": 1, "rows": [row]}, path
    for path, row in {
        "/projects/all": project,
        "/models/all": model,
        "/experiments/all": experiment,
    }.items():
        assert row in measure.rows_of(str(api.base_url).removesuffix(f"{API}/"), path)


def test_health_is_answered_under_both_of_its_addresses(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/v0.1/health").json() == {"status": "ok"}
    assert httpx.get(f"{url}/ready").json() == {"status": "ready"}


def test_a_project_or_model_that_is_there_is_returned_and_not_added_again(
    api: httpx.Client,
) -> None:
    name = uuid4().hex
    bodies = [
        ({"project_name": name, "description": "one"}, 201),
        ({"project_name": name, "description": "one"}, 200),
        ({"project_name": name}, 200),
        ({"project_name": name, "description": "another"}, 409),
    ]
    answers = [(api.post("/projects", json=body), status) for body, status in bodies]
    assert [answer.status_code for answer, _ in answers] == [status for _, status in bodies]
    rows = [answer.json() for answer, status in answers if status != 409]
    assert rows[0] == rows[1] == rows[2]
    project_id = rows[0]["project_id"]
    body = {"project_id": project_id, "model_name": "iris", "description": "a"}
    assert api.post("/models", json=body).status_code == 201
    assert api.post("/models", json=body).status_code == 200
    assert api.post("/models", json=body | {"description": "b"}).status_code == 409
    # The same name in another project is another model.
    other = add_model(api)
    assert api.get(f"/models/id/{other}").json()["model_name"] == "iris"
    assert api.get(f"/models/project-id/{project_id}").json()["total"] == 1


def test_what_is_not_there_is_a_404_that_names_it(api: httpx.Client) -> None:
    unknown = f"there-is-none-{uuid4().hex}"
    for path in (
        f"/projects/id/{UNKNOWN_ID}",
        f"/projects/name/{unknown}",
        f"/models/id/{UNKNOWN_ID}",
        f"/models/project-id/{UNKNOWN_ID}",
        f"/models/project-name/{unknown}",
        f"/models/champion/{unknown}",
        f"/experiments/id/{UNKNOWN_ID}",
        f"/experiments/model-id/{UNKNOWN_ID}",
        f"/experiments/project-id/{UNKNOWN_ID}",
    ):
        answer = api.get(path)
        assert answer.status_code == 404, path
        assert path.rpartition("/")[2] in answer.json()["detail"]
    for path, body in {
        "/models": {"project_id": UNKNOWN_ID, "model_name": "iris"},
        "/experiments": {"model_id": UNKNOWN_ID, "model_version_id": "1"},
        f"/experiments/evaluations/{UNKNOWN_ID}": {"evaluations": {"accuracy": 1}},
        f"/experiments/artifact-file-paths/{UNKNOWN_ID}": {"artifact_file_paths": {"onnx": "a"}},
        f"/experiments/promote/{UNKNOWN_ID}": {"expected_champion": None},
    }.items():
        answer = api.post(path, json=body)
        assert answer.status_code == 404, path
        assert UNKNOWN_ID in answer.json()["detail"]
    # A search that finds nothing is not an error.
    for path in (f"/models/name/{unknown}", f"/experiments/model-version-id/{unknown}"):
        assert api.get(path).json() == {"total": 0, "rows": []}


@pytest.mark.parametrize(
    "path",
    [
        "/projects/id/x",
        "/projects/id/1234567",
        "/models/id/%00",
        "/experiments/id/' OR 1=1 --",
        "/projects/name/%00",
        "/projects/name/a%0Ab",
        "/projects/name/%20",
        f"/projects/name/{'x' * 300}",
        "/models/champion/iris?project_name=%00",
        "/projects/all?limit=0",
        "/projects/all?limit=26",
        "/projects/all?limit=x",
        "/projects/all?offset=-1",
        "/projects/all?offset=99999999999999999999",
    ],
)
def test_an_id_a_name_or_a_part_that_cannot_be_is_a_422(api: httpx.Client, path: str) -> None:
    answer = api.get(path)
    assert answer.status_code == 422
    assert len(answer.content) < 1_000


def test_a_version_is_registered_once_and_the_409_names_the_experiment(api: httpx.Client) -> None:
    model_id = add_model(api)
    first = add_experiment(api, model_id, model_version_id="1", evaluations={"accuracy": 0.9})
    body = {"model_id": model_id, "model_version_id": "1", "evaluations": {"accuracy": 0.1}}
    second = api.post("/experiments", json=body)
    assert second.status_code == 409
    assert first in second.json()["detail"]
    found = api.get(f"/experiments/id/{first}").json()
    assert found["evaluations"] == {"accuracy": 0.9}
    # Another model has versions of its own.
    add_experiment(api, add_model(api), model_version_id="1")


def test_pages_of_a_list_hold_every_row_once_and_the_oldest_first(api: httpx.Client) -> None:
    model_id = add_model(api)
    ids = [add_experiment(api, model_id) for _ in range(25)]
    found = []
    for offset in range(0, 40, 10):
        page = api.get(f"/experiments/model-id/{model_id}?limit=10&offset={offset}").json()
        assert page["total"] == 25
        found += [row["experiment_id"] for row in page["rows"]]
    assert found == ids
    default = api.get(f"/experiments/model-id/{model_id}").json()
    assert len(default["rows"]) == 25


EXPERIMENT = {"model_id": UNKNOWN_ID, "model_version_id": "1"}
DEEP = "[" * 10_000 + "]" * 10_000
# Each is a body that is not valid, where it was sent, and what the answer has to say.
INVALID_BODIES = {
    "empty": ("/projects", "", "Invalid JSON"),
    "no object": ("/projects", "[]", "an object"),
    "cut off": ("/projects", '{"project_name": "i', "Invalid JSON"),
    "not UTF-8": ("/projects", b'{"project_name": "\xff"}', "Invalid JSON"),
    "missing": ("/projects", "{}", "Field required"),
    "misspelt": ("/projects", '{"project_name": "a", "descripton": "b"}', "Extra inputs"),
    "null": ("/projects", '{"project_name": null}', "valid string"),
    "a number": ("/projects", '{"project_name": 1}', "valid string"),
    "no characters": ("/projects", '{"project_name": ""}', "match pattern"),
    "white space": ("/projects", '{"project_name": " "}', "match pattern"),
    "a space at the end": ("/projects", '{"project_name": "iris "}', "match pattern"),
    "a slash": ("/projects", '{"project_name": "a/b"}', "match pattern"),
    "a path": ("/projects", '{"project_name": ".."}', "match pattern"),
    "a line break": ("/projects", '{"project_name": "a\\nb"}', "match pattern"),
    "the character 0": ("/projects", '{"project_name": "a\\u0000"}', "match pattern"),
    "half a character": ("/projects", '{"project_name": "\\ud800"}', "Invalid JSON"),
    "a long name": ("/projects", f'{{"project_name": "{"x" * 256}"}}', "at most 255"),
    "0 in a description": (
        "/projects",
        '{"project_name": "a", "description": "\\u0000"}',
        "match pattern",
    ),
    "no id": ("/models", '{"project_id": "x", "model_name": "a"}', "valid UUID"),
    "an id of 6 digits": ("/models", '{"project_id": "abc123", "model_name": "a"}', "valid UUID"),
    "NaN": ("/experiments", {"evaluations": {"loss": float("nan")}}, "finite"),
    "infinity": ("/experiments", {"evaluations": {"loss": float("inf")}}, "finite"),
    "NaN inside": ("/experiments", {"parameters": {"a": [{"b": float("nan")}]}}, "finite"),
    "an integer of 5,000 digits": (
        "/experiments",
        json.dumps(EXPERIMENT)[:-1] + f', "evaluations": {{"a": {"9" * 5_000}}}}}',
        "number out of range",
    ),
    "evaluations as a list": ("/experiments", {"evaluations": [0.9]}, "an object"),
    "evaluations as null": ("/experiments", {"evaluations": None}, "an object"),
    "an empty key": ("/experiments", {"evaluations": {"": 1}}, "at least 1 character"),
    "a path that is a number": ("/experiments", {"artifact_file_paths": {"onnx": 1}}, "string"),
    "too large": ("/experiments", {"evaluations": {"a": "x" * 8_192}}, "more than 8192"),
    "too large paths": ("/experiments", {"artifact_file_paths": {"a": "x" * 8_192}}, "8192"),
    "10,000 levels": (
        "/experiments",
        json.dumps(EXPERIMENT)[:-1] + f', "parameters": {{"a": {DEEP}}}}}',
        "recursion limit",
    ),
    "a short digest": ("/experiments", {"artifact_sha256": "abc"}, "match pattern"),
    "a stage": ("/experiments", {"stage": "champion"}, "Extra inputs"),
    "no evaluations": (f"/experiments/evaluations/{UNKNOWN_ID}", "{}", "Field required"),
    "no paths": (f"/experiments/artifact-file-paths/{UNKNOWN_ID}", "{}", "Field required"),
    "nobody expected": (f"/experiments/promote/{UNKNOWN_ID}", "{}", "Field required"),
    "a champion that is no id": (
        f"/experiments/promote/{UNKNOWN_ID}",
        '{"expected_champion": "x"}',
        "valid UUID",
    ),
}


@pytest.mark.parametrize(("path", "body", "reason"), INVALID_BODIES.values(), ids=INVALID_BODIES)
def test_an_invalid_body_is_a_422_that_says_why_and_stores_nothing(
    api: httpx.Client, path: str, body: str | bytes | dict[str, Any], reason: str
) -> None:
    content = json.dumps(EXPERIMENT | body) if isinstance(body, dict) else body
    answer = api.post(path, content=content)
    assert answer.status_code == 422, answer.text
    assert reason in answer.text
    assert len(answer.content) < 5_000


def test_what_a_text_may_hold_comes_back_as_it_was(api: httpx.Client) -> None:
    model_id = add_model(api)
    evaluations = {
        "large": 10**4_000,
        "\u0000": "\u0000",
        "'; DROP TABLE projects; --": "\\u0000",
        "é": {"": [[]]},
    }
    experiment_id = add_experiment(api, model_id, evaluations=evaluations)
    assert api.get(f"/experiments/id/{experiment_id}").json()["evaluations"] == evaluations
    assert httpx.get(str(api.base_url).removesuffix(f"{API}/")).status_code == 200


# --- writers at the same moment -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "column"),
    [("evaluations", "evaluations"), ("artifact-file-paths", "artifact_file_paths")],
)
def test_50_writers_to_one_experiment_lose_nothing(
    api: httpx.Client, path: str, column: str
) -> None:
    experiment_id = add_experiment(api, add_model(api), **{column: {"first": "kept"}})
    answers = at_once(
        50,
        lambda number: api.post(
            f"/experiments/{path}/{experiment_id}", json={column: {f"key {number}": str(number)}}
        ),
    )
    assert statuses(answers) == {200: 50}
    expected = {"first": "kept"} | {f"key {number}": str(number) for number in range(50)}
    assert api.get(f"/experiments/id/{experiment_id}").json()[column] == expected
    # The last one to write has seen all others.
    assert max(len(answer.json()[column]) for answer in answers) == 51


def test_a_second_evaluation_is_stored_and_answered(api: httpx.Client) -> None:
    experiment_id = add_experiment(api, add_model(api), evaluations={"accuracy": 0.5, "loss": 1})
    answer = api.post(
        f"/experiments/evaluations/{experiment_id}",
        json={"evaluations": {"accuracy": 0.9, "f1": 1}},
    )
    merged = {"accuracy": 0.9, "loss": 1, "f1": 1}
    assert answer.json()["evaluations"] == merged
    assert api.get(f"/experiments/id/{experiment_id}").json() == answer.json()


def test_an_experiment_grows_up_to_its_bound(api: httpx.Client) -> None:
    experiment_id = add_experiment(api, add_model(api))
    path = f"/experiments/evaluations/{experiment_id}"
    large = {"a": "x" * 5_000}
    assert api.post(path, json={"evaluations": large}).status_code == 200
    assert api.post(path, json={"evaluations": {"a": "y" * 5_000}}).status_code == 200
    answer = api.post(path, json={"evaluations": {"b": "x" * 5_000}})
    assert answer.status_code == 409
    assert "more than 8192" in answer.json()["detail"]
    stored = api.get(f"/experiments/id/{experiment_id}").json()["evaluations"]
    assert stored == {"a": "y" * 5_000}


def test_50_callers_that_need_the_same_project_or_model_get_one(api: httpx.Client) -> None:
    name = uuid4().hex
    answers = at_once(50, lambda _: api.post("/projects", json={"project_name": name}))
    assert statuses(answers) == {201: 1, 200: 49}
    assert len({answer.json()["project_id"] for answer in answers}) == 1
    body = {"project_id": answers[0].json()["project_id"], "model_name": "iris"}
    answers = at_once(50, lambda _: api.post("/models", json=body))
    assert statuses(answers) == {201: 1, 200: 49}
    assert len({answer.json()["model_id"] for answer in answers}) == 1


def test_the_same_version_from_20_trainers_is_one_experiment(api: httpx.Client) -> None:
    body = {"model_id": add_model(api), "model_version_id": "1"}
    answers = at_once(20, lambda _: api.post("/experiments", json=body))
    assert statuses(answers) == {201: 1, 409: 19}
    (added,) = (answer.json() for answer in answers if answer.status_code == 201)
    refused = (answer.json()["detail"] for answer in answers if answer.status_code == 409)
    assert all(added["experiment_id"] in detail for detail in refused)


# --- promotion ------------------------------------------------------------------------------------


def test_a_champion_is_followed_by_the_next_and_can_come_back(api: httpx.Client) -> None:
    name = uuid4().hex
    model_id = add_model(api, name)
    first, second = (
        add_experiment(api, model_id, artifact_sha256=SHA256, artifact_file_paths={"onnx": "a"})
        for _ in range(2)
    )
    assert api.get(f"/models/champion/{name}").status_code == 404
    assert promote(api, first, None).json()["stage"] == "champion"
    champion = api.get(f"/models/champion/{name}").json()
    assert champion == api.get(f"/experiments/id/{first}").json()
    assert (champion["artifact_sha256"], champion["artifact_file_paths"]) == (SHA256, {"onnx": "a"})

    stale = promote(api, second, None)
    assert stale.status_code == 409
    assert first in stale.json()["detail"]
    assert promote(api, second, first).status_code == 200
    # The answer was lost, so the caller asks again.
    assert promote(api, second, first).status_code == 200
    stages = {row: api.get(f"/experiments/id/{row}").json()["stage"] for row in (first, second)}
    assert stages == {first: "retired", second: "champion"}
    assert promote(api, first, second).json()["stage"] == "champion"
    assert api.get(f"/experiments/id/{second}").json()["stage"] == "retired"
    # Nobody is expected where somebody is, and the wrong one either.
    assert promote(api, second, second).status_code == 409
    assert promote(api, second, UNKNOWN_ID).status_code == 409


def test_of_20_promotions_at_once_one_wins(api: httpx.Client, url: str) -> None:
    model_id = add_model(api)
    expected: str | None = None
    for _ in range(3):
        rivals = [add_experiment(api, model_id) for _ in range(20)]
        answers = at_once(
            20, lambda n, rivals=rivals, expected=expected: promote(api, rivals[n], expected)
        )
        assert statuses(answers) == {200: 1, 409: 19}
        (winner,) = (answer.json() for answer in answers if answer.status_code == 200)
        expected = winner["experiment_id"]
        rows = measure.rows_of(url, f"/experiments/model-id/{model_id}")
        champions = [row["experiment_id"] for row in rows if row["stage"] == "champion"]
        assert champions == [expected]


def test_the_database_itself_refuses_a_second_champion(
    api: httpx.Client, database: dict[str, str]
) -> None:
    model_id = add_model(api)
    for _ in range(2):
        add_experiment(api, model_id)
    engine = connect(settings_of(database))
    for stage in ("champion", "best"):
        with engine.connect() as connection, pytest.raises(IntegrityError):
            connection.execute(update(Experiment).values(stage=stage))
    engine.dispose()


def test_a_model_name_of_two_projects_needs_the_name_of_one(api: httpx.Client) -> None:
    name = uuid4().hex
    for model_id in [add_model(api, name) for _ in range(2)]:
        promote(api, add_experiment(api, model_id), None)
    assert api.get(f"/models/champion/{name}").status_code == 409
    rows = api.get(f"/models/name/{name}").json()["rows"]
    for row in rows:
        project = api.get(f"/projects/id/{row['project_id']}").json()["project_name"]
        champion = api.get(f"/models/champion/{name}?project_name={project}").json()
        assert champion["model_id"] == row["model_id"]
    assert api.get(f"/models/champion/{name}?project_name=none").status_code == 404


# --- the page -------------------------------------------------------------------------------------


def test_the_page_shows_models_with_their_champion_and_metrics(tmp_path: Path) -> None:
    with run_api({"DATABASE_URL": f"sqlite:///{tmp_path}/new.sqlite"}) as server:
        assert "Nothing is registered yet" in httpx.get(server.url).text
        with httpx.Client(base_url=server.url + API) as api:
            model_ids = [add_model(api, f"model {number:02}") for number in range(21)]
            first = add_experiment(
                api,
                model_ids[0],
                model_version_id="7",
                evaluations={"accuracy": 0.9555, "ok": True, "huge": 10**4_000},
            )
            promote(api, first, None)
            for _ in range(6):
                add_experiment(api, model_ids[0], evaluations={"accuracy": 0.1})
        pages = [httpx.get(f"{server.url}/?page={number}").text for number in (1, 2, 3)]
        shown = "".join(pages)
        assert len(set(re.findall(r"/ (model \d\d)</h2>", shown))) == 21
        assert len(re.findall(r"/ model \d\d</h2>", pages[0])) == 20
        assert len(re.findall(r"/ model \d\d</h2>", pages[1])) == 1
        assert "Nothing is registered on this page" in pages[2]
        assert "?page=2" in pages[0]
        assert "?page=1" in pages[1]
        assert "?page=3" not in pages[1]
        assert 'Champion: <span class="champion">version 7</span>' in shown
        # The five newest experiments, and the champion, which is older.
        assert shown.count("accuracy 0.1<") == 5
        assert shown.count("accuracy 0.9555<") == 1
        assert httpx.get(f"{server.url}/?page=0").status_code == 422


def test_nothing_that_is_registered_becomes_part_of_the_page(api: httpx.Client, url: str) -> None:
    script = "<script>alert(1)</script>"
    project = api.post("/projects", json={"project_name": f"0 {uuid4().hex}"}).json()
    body = {
        "project_id": project["project_id"],
        "model_name": "iris",
        "description": f"{script}{{{{ 7 * 7 }}}}",
    }
    model_id = api.post("/models", json=body).json()["model_id"]
    add_experiment(api, model_id, evaluations={f"{script}<img src=x onerror=alert(1)>": 0.5})
    page = httpx.get(url)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;{{ 7 * 7 }}" in page.text
    assert "<script" not in page.text
    assert "<img" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


# --- the database comes and goes ------------------------------------------------------------------


def test_what_was_acknowledged_is_there_after_both_were_killed(
    postgres: Postgres, migrated: dict[str, str]
) -> None:
    database = postgres.new_database(migrated)
    with run_api(database) as server, httpx.Client(base_url=server.url + API) as api:
        model_id = add_model(api)
        experiment_id = add_experiment(api, model_id, evaluations={"accuracy": 0.9})
        rows = api.get("/experiments/all").json()
        reads = [
            f"{API}{path}"
            for path in (
                "/projects/all",
                f"/projects/id/{UNKNOWN_ID}",
                "/projects/name/iris",
                "/models/all",
                f"/models/id/{model_id}",
                "/models/name/iris",
                f"/models/project-id/{UNKNOWN_ID}",
                "/models/project-name/iris",
                "/models/champion/iris",
                "/experiments/all",
                f"/experiments/id/{experiment_id}",
                "/experiments/model-version-id/1",
                f"/experiments/model-id/{model_id}",
                f"/experiments/project-id/{UNKNOWN_ID}",
            )
        ]
        writes = {
            "/projects": {"project_name": "a"},
            "/models": {"project_id": UNKNOWN_ID, "model_name": "a"},
            "/experiments": EXPERIMENT,
            f"/experiments/evaluations/{experiment_id}": {"evaluations": {"a": 1}},
            f"/experiments/artifact-file-paths/{experiment_id}": {"artifact_file_paths": {}},
            f"/experiments/promote/{experiment_id}": {"expected_champion": None},
        }
        documented = httpx.get(f"{server.url}/openapi.json").json()["paths"]
        assert len(reads) + len(writes) == sum(path.startswith(API) for path in documented)
        postgres.kill()
        answers = [httpx.get(server.url + path) for path in ["/ready", "/", *reads]]
        answers += [api.post(path, json=body) for path, body in writes.items()]
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.headers["retry-after"] for answer in answers} == {"1"}
        assert httpx.get(f"{server.url}/health").status_code == 200
        log = server.log.read_text()
        assert re.search("the database is out of reach: .*Connection refused", log)
        assert postgres.password not in log
        postgres.start()
        assert httpx.get(f"{server.url}/ready").status_code == 200
        assert api.get("/experiments/all").json() == rows
        server.kill()
    # The next API is started before the database.
    postgres.kill()
    with run_api(database, ready="/health") as server:
        assert refusal_of(server, "/ready") == "the database is out of reach"
        postgres.start()
        assert httpx.get(f"{server.url}/ready").status_code == 200
        assert httpx.get(f"{server.url}{API}/experiments/all").json() == rows


def test_a_database_that_is_suspended_is_a_503(
    postgres: Postgres, migrated: dict[str, str]
) -> None:
    database = postgres.new_database(migrated)
    with run_api(database, DATABASE_DEADLINE_SECONDS="0.5") as server:
        main = psutil.Process(postgres.process.pid)
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            # Without a deadline they would wait for as long as it is suspended.
            answers = at_once(
                16, lambda _: httpx.get(f"{server.url}{API}/projects/all", timeout=300)
            )
            assert statuses(answers) == {503: 16}
        finally:
            for process in processes:
                process.resume()
        wait_until(
            lambda: httpx.get(f"{server.url}/ready").status_code == 200, "the API to recover"
        )


def test_more_requests_than_connections_take_turns(
    postgres: Postgres, migrated: dict[str, str]
) -> None:
    database = postgres.new_database(migrated)
    with run_api(database, DATABASE_CONNECTIONS="2") as server:
        with httpx.Client(base_url=server.url + API, timeout=20) as api:
            answers = at_once(
                60, lambda number: api.post("/projects", json={"project_name": f"p{number}"})
            )
        assert statuses(answers) == {201: 60}


@pytest.mark.parametrize("count", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_pages_and_lists_of_the_largest_experiments_fit_in_the_container(
    count: int, postgres: Postgres, migrated: dict[str, str]
) -> None:
    database = postgres.new_database(migrated)
    # Many small texts take more memory than a large one, and these are not written in ASCII.
    values = {f"{number:04}": "é" for number in range(MOST_BYTES // 18 - 1)}
    datasets = dict.fromkeys(
        ("training_dataset", "validation_dataset", "test_dataset"), "✿" * 1_000
    )
    compose = load_compose(ROOT / "chapter2_training/model_db")
    limit_bytes = compose.service("api").memory_limit_bytes
    with run_api(database) as server, httpx.Client(base_url=server.url + API, timeout=60) as api:
        for model_id in [add_model(api) for _ in range(21)]:
            for _ in range(5):
                add_experiment(
                    api,
                    model_id,
                    parameters=values,
                    evaluations=values,
                    artifact_file_paths=values,
                    **datasets,
                )
        process, peak = psutil.Process(server.pid), 0
        with ThreadPoolExecutor(count) as threads:
            paths = [f"{server.url}{path}" for path in ("/", f"{API}/experiments/all")]
            running = [threads.submit(api.get, path) for path in paths * (count // 2)]
            while wait(running, timeout=0.005).not_done:
                peak = max(peak, process.memory_info().rss)
    answers = [each.result() for each in running]
    # What would have to wait for long is refused instead.
    assert statuses(answers).keys() <= {200, 503}
    lists = [each.json() for each in answers[1::2] if each.status_code == 200]
    assert {len(each["rows"]) for each in lists} == {25}
    assert limit_bytes
    assert 0 < peak < limit_bytes


def test_the_pods_of_a_rollout_fit_under_the_connections_of_postgresql() -> None:
    manifests = ROOT / "chapter2_training/model_db/manifests"
    deployment = yaml.safe_load((manifests / "deployment.yml").read_text())["spec"]
    replicas = yaml.safe_load((manifests / "hpa.yml").read_text())["spec"]["maxReplicas"]
    (api,) = deployment["template"]["spec"]["containers"]
    assert "DATABASE_CONNECTIONS" not in {variable["name"] for variable in api["env"]}
    surge = deployment["strategy"]["rollingUpdate"]["maxSurge"]
    # Pods that end are in no such bound: at most all the old ones end while the new ones run.
    pods = replicas + surge + replicas
    migration, superuser = 1, 3
    assert pods * Settings().database_connections + migration + superuser < 100


def test_a_password_may_hold_any_character(postgres: Postgres, migrated: dict[str, str]) -> None:
    password = f"p@ss:w/rd%20#?{uuid4().hex}"
    postgres.execute(f"CREATE ROLE reader LOGIN SUPERUSER PASSWORD '{password}'")
    address = migrated["DATABASE_URL"].replace(f"+psycopg2://{USER}@", "://reader@")
    engine = connect(settings_of({"DATABASE_URL": address, "DATABASE_PASSWORD": password}))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_user")).scalar() == "reader"
    engine.dispose()


def write_while_it_ends(
    postgres: Postgres, migrated: dict[str, str], end: Callable[[Server], None]
) -> tuple[list[str | None], set[str]]:
    """Ends a server that has accepted eight writes; returns their answers, and what is stored."""
    database = postgres.new_database(migrated)
    with (
        run_api(database, DATABASE_DEADLINE_SECONDS="10") as server,
        httpx.Client(base_url=server.url + API) as api,
        closing(postgres.connect(name_of(database))) as blocker,
        ThreadPoolExecutor(8) as threads,
    ):
        model_id = add_model(api)
        cursor = blocker.cursor()
        cursor.execute("LOCK TABLE experiments IN SHARE MODE")
        running = [threads.submit(id_if_answered, server.url, model_id) for _ in range(8)]

        def are_waiting() -> bool:
            cursor.execute(
                "SELECT count(*) FROM pg_locks WHERE NOT granted"
                " AND relation = 'experiments'::regclass"
            )
            return bool(cursor.fetchone() == (8,))

        wait_until(are_waiting, "the writes to be in their middle")
        end(server)
        # What comes now is refused, so that its caller knows that nothing has become of it.
        wait_until(lambda: is_refused(server.url), "the server to refuse connections")
        blocker.rollback()
        ids = [each.result() for each in running]
        assert server.wait(10) in (0, -signal.SIGTERM, -signal.SIGKILL)
    stored = postgres.select(database, "SELECT experiment_id::text FROM experiments")
    return ids, {row for (row,) in stored}


def id_if_answered(url: str, model_id: str) -> str | None:
    body = {"model_id": model_id, "model_version_id": uuid4().hex}
    try:
        answer = httpx.post(f"{url}{API}/experiments", json=body, timeout=20)
    except httpx.TransportError:
        return None
    assert answer.status_code == 201, answer.text
    return str(answer.json()["experiment_id"])


def is_refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/health")
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        pass
    return False


def test_sigterm_answers_every_write_that_was_accepted_and_stores_no_other(
    postgres: Postgres, migrated: dict[str, str]
) -> None:
    ids, stored = write_while_it_ends(postgres, migrated, Server.terminate)
    assert None not in ids
    assert set(ids) == stored


@pytest.mark.slow
def test_a_kill_answers_no_write(postgres: Postgres, migrated: dict[str, str]) -> None:
    """Is the control of the test above."""
    ids, _ = write_while_it_ends(postgres, migrated, Server.kill)
    assert ids == [None] * 8


# --- migrations -----------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_api_uses(
    database: dict[str, str], url: str
) -> None:
    engine = connect(settings_of(database))
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Table.metadata)
    engine.dispose()
    assert differences == []


def settings_of(database: dict[str, str]) -> Settings:
    return Settings(**{name.lower(): value for name, value in database.items()})  # type: ignore[arg-type]


def test_migrations_at_the_same_moment_take_turns(postgres: Postgres) -> None:
    database = postgres.new_database()
    with ThreadPoolExecutor(2) as threads:
        for each in [threads.submit(migrate, database) for _ in range(2)]:
            each.result()
    assert len(tables_of(postgres, database)) == 4


def tables_of(postgres: Postgres, database: dict[str, str]) -> list[str]:
    named = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    return [name for (name,) in postgres.select(database, named)]


def test_two_apis_on_one_new_file_start_at_the_same_moment(tmp_path: Path) -> None:
    file = tmp_path / "shared.sqlite"

    def start(_: int) -> None:
        with (
            run_api({"DATABASE_URL": f"sqlite:///{file}"}) as server,
            httpx.Client(base_url=server.url + API) as api,
        ):
            add_model(api)

    with ThreadPoolExecutor(2) as threads:
        for each in [threads.submit(start, number) for number in range(2)]:
            each.result()
    with closing(sqlite3.connect(file)) as client:
        assert client.execute("SELECT count(*) FROM models").fetchone() == (2,)


def test_an_api_is_ready_once_its_tables_are_there_and_stays_so_with_newer_ones(
    postgres: Postgres,
) -> None:
    database = postgres.new_database()
    with run_api(database, ready="/health") as server:
        assert refusal_of(server, "/ready") == NOT_MIGRATED
        migrate(database)
        assert httpx.get(f"{server.url}/ready").status_code == 200
        postgres.change(database, "UPDATE alembic_version SET version_num = 'of a newer API'")
        assert httpx.get(f"{server.url}/ready").status_code == 200
        postgres.change(database, "DELETE FROM alembic_version")
        assert refusal_of(server, "/ready") == NOT_MIGRATED
        postgres.change(database, "DROP TABLE experiments")
        assert refusal_of(server, f"{API}/experiments/all") == NOT_MIGRATED
        assert "experiments" in server.log.read_text()


def test_a_migration_of_an_older_api_leaves_newer_tables_as_they_are(
    postgres: Postgres, migrated: dict[str, str]
) -> None:
    database = postgres.new_database(migrated)
    postgres.change(database, "UPDATE alembic_version SET version_num = 'of a newer API'")
    assert "the tables stay as they are" in migrate(database)
    versions = postgres.select(database, "SELECT version_num FROM alembic_version")
    assert versions == [("of a newer API",)]
    # The control: where no revision is named, the migrations run, and find that a table is there.
    postgres.change(database, "DELETE FROM alembic_version")
    with pytest.raises(subprocess.CalledProcessError) as error:
        migrate(database)
    assert "DuplicateTable" in error.value.stderr


def test_an_older_api_starts_on_a_file_of_a_newer_one(tmp_path: Path) -> None:
    file = tmp_path / "model_db.sqlite"
    database = {"DATABASE_URL": f"sqlite:///{file}"}
    engine = connect(settings_of(database))
    run_migrations(engine)
    engine.dispose()
    with closing(sqlite3.connect(file)) as client, client:
        client.execute("UPDATE alembic_version SET version_num = 'of a newer API'")
    with run_api(database) as server, httpx.Client(base_url=server.url + API) as api:
        add_model(api)
        assert "the tables stay as they are" in server.log.read_text()
        with closing(sqlite3.connect(file)) as client:
            client.execute("DROP TABLE experiments")
        assert refusal_of(server, f"{API}/experiments/all") == NOT_MIGRATED


def test_a_migration_that_is_killed_leaves_nothing_half_made(postgres: Postgres) -> None:
    database = postgres.new_database()
    # The tables are made, and the next statement waits for this lock on the table of versions.
    blocker = postgres.connect(name_of(database))
    try:
        cursor = blocker.cursor()
        cursor.execute(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY); COMMIT; BEGIN;"
            "LOCK TABLE alembic_version IN SHARE MODE"
        )
        migration = subprocess.Popen(
            [sys.executable, "-m", f"{PACKAGE}.app.migrate"],
            cwd=ROOT,
            env={**os.environ, **database},
        )

        def is_waiting() -> bool:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return bool(cursor.fetchone() == (1,))

        wait_until(is_waiting, "the migration to be in its middle")
        migration.kill()
        migration.wait()
    finally:
        blocker.close()

    assert tables_of(postgres, database) == ["alembic_version"]
    migrate(database)
    assert len(tables_of(postgres, database)) == 4


# --- what is measured -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("measure")
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick", "--output", str(directory)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=500, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((directory / "results.json").read_text())
    return found


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(results: dict[str, Any]) -> None:
    assert results["holds"]
    assert results["counts"]["rows_acknowledged"] > 0
    assert all(count > 0 for count in results["control"].values())


@pytest.mark.parametrize("name", measure.NONE)
def test_the_claim_does_not_hold_for_other_counts(results: dict[str, Any], name: str) -> None:
    assert measure.claim_holds(results["counts"])
    assert not measure.claim_holds(results["counts"] | {name: results["control"][name]})


@pytest.mark.slow
def test_many_writers_and_many_kills_lose_nothing(postgres: Postgres) -> None:
    database = postgres.new_database()
    migrate(database)
    with run_api(database) as server:
        assert not any(measure.count_conflicts(server.url, measure.FULL).values())
    with run_postgres() as killed:
        database = killed.new_database()
        migrate(database)
        ((acknowledged, lost),) = measure.count_lost_rows(killed, [database], measure.FULL)
    assert acknowledged >= 2 * measure.FULL.kills * measure.FULL.rows_a_kill
    assert lost == 0
