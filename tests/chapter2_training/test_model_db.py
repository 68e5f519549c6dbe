"""Tests the registry with PostgreSQL and SQLite, concurrent writers and kills."""

import asyncio
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
import yaml
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fastapi import FastAPI, HTTPException, Request
from psycopg2.extensions import set_wait_callback
from sqlalchemy import text, update
from sqlalchemy.exc import IntegrityError

from chapter2_training.model_db.app import capacity, guard
from chapter2_training.model_db.app.database import connect
from chapter2_training.model_db.app.migrate import migrate as run_migrations
from chapter2_training.model_db.app.schema import MAX_JSON_BYTES
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
from tools.measure.results import load as load_results
from tools.measure.server import Server, wait_until
from tools.read.compose import load as load_compose

API = "/v0.1/api"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module", autouse=True)
def _waiting() -> Iterator[None]:
    """Takes back what `connect` sets for the whole process, because other tests share this one.

    psycopg2 refuses COPY while a callback waits for the server.
    """
    yield
    set_wait_callback(None)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with run_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def migrated(postgres: Postgres) -> dict[str, str]:
    """A migrated database to copy, because each migration starts a process."""
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
    """Returns the API settings for an empty database of either kind."""
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
    """Adds a model to a new project and returns its id."""
    project = api.post("/projects", json={"project_name": uuid4().hex}).json()
    body = {"project_id": project["project_id"], "model_name": model_name}
    response = api.post("/models", json=body)
    assert response.status_code == 201, response.text
    model_id: str = response.json()["model_id"]
    return model_id


def add_experiment(api: httpx.Client, model_id: str, **values: Any) -> str:
    body = {"model_id": model_id, "model_version_id": uuid4().hex, **values}
    response = api.post("/experiments", json=body)
    assert response.status_code == 201, response.text
    experiment_id: str = response.json()["experiment_id"]
    return experiment_id


def promote(api: httpx.Client, experiment_id: str, expected: str | None) -> httpx.Response:
    body = {"expected_champion": expected}
    return api.post(f"/experiments/promote/{experiment_id}", json=body)


def at_once(count: int, call: Any) -> list[httpx.Response]:
    """Makes concurrent calls, each with its number."""
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(call, range(count)))


def statuses(responses: list[httpx.Response]) -> Counter[int]:
    return Counter(response.status_code for response in responses)


NOT_MIGRATED = "the database is not migrated: run python -m app.migrate"
# A valid body for each endpoint that writes, by the last word of its path.
BODIES: dict[str, dict[str, Any]] = {
    "projects": {"project_name": UNKNOWN_ID},
    "models": {"project_id": UNKNOWN_ID, "model_name": "a"},
    "experiments": {"model_id": UNKNOWN_ID, "model_version_id": "1"},
    "evaluations": {"evaluations": {"a": 1}},
    "artifact-file-paths": {"artifact_file_paths": {}},
    "promote": {"expected_champion": None},
}


def operations(url: str) -> list[tuple[str, str, Any]]:
    """Returns method, path and body of a valid request to each operation, with an unknown id."""
    return [
        (
            method,
            re.sub("{[^}]*}", UNKNOWN_ID, path),
            BODIES[re.sub("/{.*", "", path).rpartition("/")[2]] if method == "post" else None,
        )
        for path, methods in httpx.get(f"{url}/openapi.json").json()["paths"].items()
        for method in methods
    ]


def refusal_of(server: Server, path: str) -> str:
    """Returns the detail of a 503, which must carry Retry-After."""
    response = httpx.get(f"{server.url}{path}")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    return str(response.json()["detail"])


# --- endpoints ------------------------------------------------------------------------------------


def test_every_lookup_returns_the_stored_row(api: httpx.Client, url: str) -> None:
    def add(path: str, **body: Any) -> dict[str, Any]:
        row: dict[str, Any] = api.post(path, json=body).raise_for_status().json()
        # Everything is stored as sent, including the order of the keys.
        assert json.dumps({name: row[name] for name in body}) == json.dumps(body)
        assert row["created_datetime"].endswith("Z")
        return row

    name, version = f"modèle.v1:{uuid4().hex}", uuid4().hex
    project = add("/projects", project_name=f"Project {uuid4().hex}", description="Iris flowers")
    model = add("/models", project_id=project["project_id"], model_name=name)
    experiment = add(
        "/experiments",
        model_id=model["model_id"],
        model_version_id=version,
        parameters={"C": 1.0, "kernel": "rbf", "nested": {"list": [1, None, True, "✿"]}},
        training_dataset="s3://data/iris/train",
        validation_dataset=None,
        test_dataset="s3://data/iris/test",
        evaluations={"tiny": 1e-300, "large": 1e300, "huge": 10**4_000, "é\0": "\0", "a": -1},
        artifact_file_paths={"onnx": "s3://models/iris_svc.onnx"},
        artifact_sha256=SHA256,
    )
    assert experiment["stage"] == "candidate"
    for path, row in {
        f"/projects/id/{project['project_id']}": project,
        f"/projects/name/{project['project_name']}": project,
        f"/models/id/{model['model_id']}": model,
        f"/experiments/id/{experiment['experiment_id']}": experiment,
    }.items():
        assert api.get(path).json() == row, path
    for path, row in {
        f"/models/name/{name}": model,
        f"/models/project-id/{project['project_id']}": model,
        f"/models/project-name/{project['project_name']}": model,
        f"/experiments/model-version-id/{version}": experiment,
        f"/experiments/model-id/{model['model_id']}": experiment,
        f"/experiments/project-id/{project['project_id']}": experiment,
    }.items():
        assert api.get(path).json() == {"total": 1, "rows": [row]}, path
    for path, row in {"projects": project, "models": model, "experiments": experiment}.items():
        assert row in measure.rows_of(url, f"/{path}/all")
    assert httpx.get(url).status_code == 200


def test_an_existing_project_or_model_is_returned_and_not_added_again(api: httpx.Client) -> None:
    body = {"project_name": uuid4().hex, "description": "one"}
    responses = [
        api.post("/projects", json=each) for each in (body, body, body | {"description": None})
    ]
    assert [response.status_code for response in responses] == [201, 200, 200]
    first, *again = [response.json() for response in responses]
    assert again == [first, first]
    assert api.post("/projects", json=body | {"description": "two"}).status_code == 409
    body = {"project_id": first["project_id"], "model_name": "iris", "description": "a"}
    assert api.post("/models", json=body).status_code == 201
    assert api.post("/models", json=body).status_code == 200
    assert api.post("/models", json=body | {"description": "b"}).status_code == 409
    # The same name in another project is another model.
    other = add_model(api)
    assert api.get(f"/models/id/{other}").json()["model_name"] == "iris"
    assert api.get(f"/models/project-id/{first['project_id']}").json()["total"] == 1


def test_a_404_names_the_missing_row(api: httpx.Client, url: str) -> None:
    for method, path, body in operations(url):
        if UNKNOWN_ID not in path + str(body) or path.endswith("/projects"):
            continue
        response = api.request(method, url + path, json=body)
        if "/models/name/" in path or "/model-version-id/" in path:
            # A search that finds nothing is not an error.
            assert response.json() == {"total": 0, "rows": []}
        else:
            assert response.status_code == 404, path
            assert UNKNOWN_ID in response.json()["detail"]


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
def test_an_invalid_id_name_or_page_is_a_422(api: httpx.Client, path: str) -> None:
    response = api.get(path)
    assert response.status_code == 422
    assert len(response.content) < 1_000


def test_paging_returns_every_row_once_and_oldest_first(api: httpx.Client) -> None:
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


@pytest.mark.parametrize(
    "name", [None, 1, "", " ", "iris ", "a/b", "..", "a\nb", "a\0", "\ud800", "x" * 256]
)
def test_an_invalid_name_is_a_422(api: httpx.Client, name: Any) -> None:
    response = api.post("/projects", content=json.dumps({"project_name": name}))
    assert response.status_code == 422, response.text


# The contract test covers bodies that are not JSON objects, and missing or unknown fields.
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("model_id", "abc123", "valid UUID"),
        ("stage", "champion", "Extra inputs"),
        ("training_dataset", "\0", "match pattern"),
        ("artifact_sha256", "abc", "match pattern"),
        ("evaluations", None, "an object"),
        ("evaluations", [0.9], "an object"),
        ("evaluations", {"": 1}, "at least 1 character"),
        ("evaluations", {"loss": float("nan")}, "finite"),
        ("evaluations", {"loss": float("inf")}, "finite"),
        ("parameters", {"a": [{"b": float("nan")}]}, "finite"),
        ("parameters", {"a": "5,000 digits"}, "number out of range"),
        ("parameters", {"a": "x" * 8_192}, "limit of 8192"),
        ("artifact_file_paths", {"a": "x" * 8_192}, "limit of 8192"),
        ("artifact_file_paths", {"onnx": 1}, "string"),
    ],
)
def test_an_invalid_experiment_is_a_422_that_says_why(
    api: httpx.Client, field: str, value: Any, reason: str
) -> None:
    content = json.dumps(BODIES["experiments"] | {field: value}).replace(
        '"5,000 digits"', "9" * 5_000
    )
    response = api.post("/experiments", content=content)
    assert response.status_code == 422, response.text
    assert reason in response.text


# --- concurrent writers ---------------------------------------------------------------------------


def test_a_merge_replaces_keys_and_stops_at_the_size_limit(api: httpx.Client) -> None:
    experiment_id = add_experiment(api, add_model(api), evaluations={"accuracy": 0.5, "loss": 1})

    def merge(**evaluations: Any) -> httpx.Response:
        path = f"/experiments/evaluations/{experiment_id}"
        return api.post(path, json={"evaluations": evaluations})

    assert merge(accuracy=0.9, f1=1).json()["evaluations"] == {"accuracy": 0.9, "loss": 1, "f1": 1}
    assert merge(a="x" * 5_000).status_code == 200
    merged = merge(a="y" * 5_000).json()
    assert merged["evaluations"] == {"accuracy": 0.9, "loss": 1, "f1": 1, "a": "y" * 5_000}
    refused = merge(b="x" * 5_000)
    assert refused.status_code == 409
    assert "limit of 8192" in refused.json()["detail"]
    assert api.get(f"/experiments/id/{experiment_id}").json() == merged


def test_50_concurrent_requests_for_one_project_model_or_version_add_one_row(
    api: httpx.Client,
) -> None:
    body = {"project_name": uuid4().hex}
    for path, row_id, child in (
        ("/projects", "project_id", {"model_name": "iris"}),
        ("/models", "model_id", {"model_version_id": "1"}),
    ):
        responses = at_once(50, lambda _, path=path, body=body: api.post(path, json=body))
        assert statuses(responses) == {201: 1, 200: 49}
        (found,) = {response.json()[row_id] for response in responses}
        body = {row_id: found, **child}
    responses = at_once(50, lambda _: api.post("/experiments", json=body))
    assert statuses(responses) == {201: 1, 409: 49}
    (added,) = (response.json() for response in responses if response.status_code == 201)
    refused = (response.json()["detail"] for response in responses if response.status_code == 409)
    assert all(added["experiment_id"] in detail for detail in refused)
    # Another model has its own versions.
    add_experiment(api, add_model(api), model_version_id="1")


# --- promotion ------------------------------------------------------------------------------------


def test_a_champion_is_replaced_and_can_return(api: httpx.Client) -> None:
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
    # A caller whose response was lost retries.
    assert promote(api, second, first).status_code == 200
    stages = {row: api.get(f"/experiments/id/{row}").json()["stage"] for row in (first, second)}
    assert stages == {first: "retired", second: "champion"}
    assert promote(api, first, second).json()["stage"] == "champion"
    assert api.get(f"/experiments/id/{second}").json()["stage"] == "retired"
    # The wrong champion is expected.
    assert promote(api, second, second).status_code == 409
    assert promote(api, second, UNKNOWN_ID).status_code == 409


def test_one_of_20_concurrent_promotions_wins(api: httpx.Client, url: str) -> None:
    model_id = add_model(api)
    rivals = [add_experiment(api, model_id) for _ in range(20)]
    responses = at_once(20, lambda number: promote(api, rivals[number], None))
    assert statuses(responses) == {200: 1, 409: 19}
    rows = measure.rows_of(url, f"/experiments/model-id/{model_id}")
    champions = [row["experiment_id"] for row in rows if row["stage"] == "champion"]
    assert champions == [rivals[[response.status_code for response in responses].index(200)]]


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


def test_a_model_name_in_two_projects_needs_a_project_name(api: httpx.Client) -> None:
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
        assert "Page 2<" in pages[1]
        assert "6 of 7 experiments<" in shown
        assert 'Champion: <span class="champion">version 7</span>' in shown
        # The five newest experiments, and the older champion.
        assert shown.count("accuracy 0.1<") == 5
        assert shown.count("accuracy 0.9555<") == 1
        assert httpx.get(f"{server.url}/?page=0").status_code == 422


def test_the_page_says_what_it_leaves_out(api: httpx.Client, url: str) -> None:
    model_id = add_model(api, name := f"model {uuid4().hex}")

    def section() -> str:
        return httpx.get(url).text.partition(f"/ {name}</h2>")[2].partition("</section>")[0]

    folds = {f"fold_{number}": 0.9 for number in range(51)}
    for evaluations in (folds, {"accuracy": 0.9, "note": "a text"}, {"accuracy": 0.9}, {}, folds):
        add_experiment(api, model_id, evaluations=evaluations)
    assert section().count("12 of 51 evaluations") == 2
    assert section().count("1 of 2 evaluations") == 1
    assert section().count(" evaluations<") == 3
    assert " experiments<" not in section()
    add_experiment(api, model_id)
    assert "5 of 6 experiments<" in section()


def test_the_page_escapes_everything_that_is_registered(api: httpx.Client, url: str) -> None:
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


# --- pages of other sites -------------------------------------------------------------------------

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "text/plain;application/json"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        (JSON, 201),
        ({"content-type": "Application/JSON; charset=utf-8"}, 201),
        (JSON | {"origin": "http://evil.example"}, 403),
        (JSON | {"origin": "http://localhost:3000", "host": "localhost:8000"}, 403),
        (JSON | {"origin": "null"}, 403),
        (JSON | {"origin": "http://localhost:8000", "host": "localhost:8000"}, 201),
        # A name of the page that now resolves to this machine.
        (JSON | {"origin": "http://evil.example", "host": "evil.example"}, 400),
        (JSON | {"host": "evil.example:8000"}, 400),
        (JSON | {"host": "localhost.evil.example"}, 400),
        (JSON | {"host": "evil.example@localhost"}, 400),
        (JSON | {"host": ""}, 400),
        (JSON | {"host": "LOCALHOST:8000"}, 201),
        (JSON | {"host": "[::1]:8000"}, 201),
        # What Kubernetes sends: the address of the pod, or the name of the Service.
        (JSON | {"host": "10.0.0.7:8000"}, 201),
        (JSON | {"host": "api:8000"}, 201),
        (JSON | {"host": "api.model-db.svc.cluster.local:8000"}, 201),
    ],
)
def test_the_page_of_another_site_cannot_write(
    api: httpx.Client, headers: dict[str, str], status: int
) -> None:
    name = uuid4().hex
    content = json.dumps({"project_name": name})
    assert api.post("/projects", content=content, headers=headers).status_code == status
    assert api.get(f"/projects/name/{name}").is_success is (status == 201)


@pytest.mark.parametrize("path", ["/", f"{API}/projects/all"])
def test_the_page_of_another_site_cannot_read_through_a_name_of_its_own(
    url: str, path: str
) -> None:
    assert httpx.get(f"{url}{path}", headers={"host": "evil.example"}).status_code == 400
    assert httpx.get(f"{url}{path}", headers={"host": "localhost:8000"}).status_code == 200


def test_the_log_counts_the_requests_of_other_sites(tmp_path: Path) -> None:
    with run_api({"DATABASE_URL": f"sqlite:///{tmp_path}/new.sqlite"}) as server:
        for headers in ({"host": "evil.example"}, JSON | {"origin": "http://evil.example"}, {}):
            httpx.post(
                f"{server.url}{API}/projects", content='{"project_name": "a"}', headers=headers
            )
        counted = (
            "1 x 400 the host name is not one of TRUSTED_HOSTS",
            "1 x 403 the page of another site may not write",
            "1 x 415 the content type is not application/json",
        )
        wait_until(lambda: all(one in server.log.read_text() for one in counted), "the log")
        assert "evil" not in server.log.read_text()


def test_a_setting_names_the_trusted_hosts(tmp_path: Path) -> None:
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/new.sqlite"}
    with run_api(database, TRUSTED_HOSTS='["registry.example.com"]') as server:
        statuses = [
            httpx.get(server.url, headers={"host": host}).status_code
            for host in ("registry.example.com", "localhost")
        ]
    assert statuses == [200, 400]


# --- database failures ----------------------------------------------------------------------------


def test_without_the_database_every_endpoint_is_a_503_and_rows_survive_kills(
    postgres: Postgres, migrated: dict[str, str]
) -> None:
    database = postgres.new_database(migrated)
    with run_api(database) as server, httpx.Client(base_url=server.url + API) as client:
        add_experiment(client, add_model(client), evaluations={"accuracy": 0.9})
        rows = client.get("/experiments/all").json()
        requests = [("get", "/", None), *operations(server.url)]
        postgres.kill()
        for method, path, body in requests:
            response = client.request(method, server.url + path, json=body)
            if not path.endswith("/health"):
                assert (response.status_code, response.headers["retry-after"]) == (503, "1"), path
        assert httpx.get(f"{server.url}/v0.1/health").json()["status"] == "ok"
        counted = r"refused: \d+ x 503 the database is unreachable: .*Connection refused"
        wait_until(lambda: bool(re.search(counted, server.log.read_text())), "the log")
        assert postgres.password not in server.log.read_text()
        postgres.start()
        assert httpx.get(f"{server.url}/ready").status_code == 200
        assert client.get("/experiments/all").json() == rows
        server.kill()
    postgres.kill()
    # The API may start before its database.
    with run_api(database, ready="/health") as server:
        assert refusal_of(server, "/ready") == "the database is unreachable"
        postgres.start()
        assert httpx.get(f"{server.url}/ready").status_code == 200
        assert httpx.get(f"{server.url}{API}/experiments/all").json() == rows


def test_a_suspended_database_is_a_503(postgres: Postgres, migrated: dict[str, str]) -> None:
    database = postgres.new_database(migrated)
    with run_api(database, DATABASE_DEADLINE_SECONDS="0.5") as server:
        main = psutil.Process(postgres.process.pid)
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            process.suspend()
        try:
            # Without a deadline the requests would wait until the client's timeout.
            responses = at_once(
                16, lambda _: httpx.get(f"{server.url}{API}/projects/all", timeout=300)
            )
            assert statuses(responses) == {503: 16}
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
        responses = at_once(
            60,
            lambda number: httpx.post(
                f"{server.url}{API}/projects", json={"project_name": f"p{number}"}, timeout=20
            ),
        )
        assert statuses(responses) == {201: 60}


@pytest.mark.parametrize("count", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_pages_and_lists_of_the_largest_experiments_fit_in_the_container(
    count: int, postgres: Postgres, migrated: dict[str, str]
) -> None:
    database = postgres.new_database(migrated)
    # Many small non-ASCII texts take more memory than one large text.
    values = {f"{number:04}": "é" for number in range(MAX_JSON_BYTES // 18 - 1)}
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
    responses = [each.result() for each in running]
    # Requests that would wait too long are refused.
    assert statuses(responses).keys() <= {200, 503}
    lists = [each.json() for each in responses[1::2] if each.status_code == 200]
    assert {len(each["rows"]) for each in lists} == {25}
    assert limit_bytes
    assert 0 < peak < limit_bytes


def test_the_log_counts_the_lists_that_would_have_to_wait_too_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(capacity.settings, "list_wait_seconds", 0.0)
    app = FastAPI()
    app.state.list_slots = asyncio.Semaphore(0)

    async def ask() -> None:
        await anext(capacity.list_slot(Request({"type": "http", "app": app})))

    with pytest.raises(HTTPException, match="too many lists at once"):
        asyncio.run(ask())
    guard.log_refusals()
    assert caplog.messages == ["refused: 1 x 503 too many lists at once"]


def test_the_pods_of_a_rollout_fit_under_the_connections_of_postgresql() -> None:
    manifests = ROOT / "chapter2_training/model_db/manifests"
    deployment = yaml.safe_load((manifests / "deployment.yml").read_text())["spec"]
    replicas = yaml.safe_load((manifests / "hpa.yml").read_text())["spec"]["maxReplicas"]
    (api,) = deployment["template"]["spec"]["containers"]
    assert "DATABASE_CONNECTIONS" not in {variable["name"] for variable in api["env"]}
    surge = deployment["strategy"]["rollingUpdate"]["maxSurge"]
    # Terminating pods are not limited: at most all old ones terminate while the new ones run.
    pods = replicas + surge + replicas
    migration, superuser = 1, 3
    assert pods * Settings().database_connections + migration + superuser < 100


def test_a_password_may_contain_any_character(postgres: Postgres, migrated: dict[str, str]) -> None:
    password = f"p@ss:w/rd%20#?{uuid4().hex}"
    postgres.execute(f"CREATE ROLE reader LOGIN SUPERUSER PASSWORD '{password}'")
    address = migrated["DATABASE_URL"].replace(f"+psycopg2://{USER}@", "://reader@")
    engine = connect(settings_of({"DATABASE_URL": address, "DATABASE_PASSWORD": password}))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_user")).scalar() == "reader"
    engine.dispose()


def test_a_password_that_is_not_escaped_is_not_logged_as_a_host() -> None:
    address = "postgresql://model_db:se@cret@127.0.0.1/model_db"
    with pytest.raises(ValueError, match="escape the password") as refused:
        connect(settings_of({"DATABASE_URL": address}))
    assert "cret" not in str(refused.value)


def test_the_reason_of_a_failure_is_logged_without_control_characters() -> None:
    database = {"DATABASE_URL": "postgresql://model_db@a\x1b[2J\u202e.invalid/model_db"}
    with run_api(database, ready="/health") as server:
        assert refusal_of(server, "/ready") == "the database is unreachable"
        wait_until(lambda: r"a\x1b[2J\u202e.invalid" in server.log.read_text(), "the log")
        assert all(line.isprintable() for line in server.log.read_text().splitlines())


def test_sigterm_finishes_every_write_that_was_accepted(
    postgres: Postgres, migrated: dict[str, str]
) -> None:
    database = postgres.new_database(migrated)

    def add(url: str, model_id: str) -> str:
        with httpx.Client(base_url=url + API, timeout=20) as client:
            return add_experiment(client, model_id)

    with (
        run_api(database, DATABASE_DEADLINE_SECONDS="10") as server,
        httpx.Client(base_url=server.url + API) as api,
        closing(postgres.connect(name_of(database))) as blocker,
        ThreadPoolExecutor(8) as threads,
    ):
        model_id = add_model(api)
        cursor = blocker.cursor()
        cursor.execute("LOCK TABLE experiments IN SHARE MODE")
        running = [threads.submit(add, server.url, model_id) for _ in range(8)]
        wait_until(lambda: waiting_locks(cursor) == 8, "the writes to wait for the lock")
        server.terminate()
        wait_until(lambda: "Shutting down" in server.log.read_text(), "the shutdown to begin")
        blocker.rollback()
        ids = {each.result() for each in running}
    stored = postgres.select(database, "SELECT experiment_id::text FROM experiments")
    assert ids == {row for (row,) in stored}


def waiting_locks(cursor: Any) -> int:
    """Returns how many statements wait for a lock on a table of the cursor's database."""
    cursor.execute(
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation IS NOT NULL AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    (count,) = cursor.fetchone()
    return int(count)


# --- migrations -----------------------------------------------------------------------------------


def test_the_migrations_create_the_tables_that_the_api_uses(
    database: dict[str, str], url: str
) -> None:
    engine = connect(settings_of(database))
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Table.metadata)
    engine.dispose()
    assert differences == []


def settings_of(database: dict[str, str]) -> Settings:
    return Settings(**{name.lower(): value for name, value in database.items()})  # type: ignore[arg-type]


def test_concurrent_migrations_take_turns(postgres: Postgres) -> None:
    database = postgres.new_database()
    with ThreadPoolExecutor(2) as threads:
        for each in [threads.submit(migrate, database) for _ in range(2)]:
            each.result()
    assert len(tables_of(postgres, database)) == 4


def tables_of(postgres: Postgres, database: dict[str, str]) -> list[str]:
    named = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
    return [name for (name,) in postgres.select(database, named)]


def test_two_apis_can_start_at_once_on_a_new_sqlite_file(tmp_path: Path) -> None:
    file = tmp_path / "shared.sqlite"
    with ExitStack() as stack, ThreadPoolExecutor(2) as threads:
        apis = [run_api({"DATABASE_URL": f"sqlite:///{file}"}) for _ in range(2)]
        for server in threads.map(stack.enter_context, apis):
            with httpx.Client(base_url=server.url + API) as api:
                add_model(api)
    with closing(sqlite3.connect(file)) as client:
        assert client.execute("SELECT count(*) FROM models").fetchone() == (2,)


def test_an_api_is_ready_once_it_is_migrated_and_stays_ready_with_newer_tables(
    postgres: Postgres,
) -> None:
    database = postgres.new_database()
    with run_api(database, ready="/health") as server:
        assert refusal_of(server, "/ready") == NOT_MIGRATED
        migrate(database)
        assert httpx.get(f"{server.url}/ready").status_code == 200
        postgres.change(database, "UPDATE alembic_version SET version_num = 'from a newer API'")
        assert "leaving the tables unchanged" in migrate(database)
        assert httpx.get(f"{server.url}/ready").status_code == 200
        postgres.change(database, "DELETE FROM alembic_version")
        assert refusal_of(server, "/ready") == NOT_MIGRATED
        # The control: without a recorded revision the migrations run and fail at an existing table.
        with pytest.raises(subprocess.CalledProcessError) as error:
            migrate(database)
        assert "DuplicateTable" in error.value.stderr
        postgres.change(database, "DROP TABLE experiments")
        assert refusal_of(server, f"{API}/experiments/all") == NOT_MIGRATED
        counted = f"1 x 503 {NOT_MIGRATED}: 'relation \"experiments\" does not exist'"
        wait_until(lambda: counted in server.log.read_text(), "the log to name the table")
        assert f"1 x 503 {NOT_MIGRATED}\n" in server.log.read_text()


def test_an_older_api_starts_on_a_newer_sqlite_file(tmp_path: Path) -> None:
    file = tmp_path / "model_db.sqlite"
    database = {"DATABASE_URL": f"sqlite:///{file}"}
    engine = connect(settings_of(database))
    run_migrations(engine)
    engine.dispose()
    with closing(sqlite3.connect(file)) as client, client:
        client.execute("UPDATE alembic_version SET version_num = 'from a newer API'")
    with run_api(database) as server, httpx.Client(base_url=server.url + API) as api:
        add_model(api)
        assert "leaving the tables unchanged" in server.log.read_text()
        with closing(sqlite3.connect(file)) as client:
            client.execute("DROP TABLE experiments")
        assert refusal_of(server, f"{API}/experiments/all") == NOT_MIGRATED


def test_a_killed_migration_changes_nothing(postgres: Postgres) -> None:
    database = postgres.new_database()
    # After creating the tables, the migration waits for this lock on the version table.
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
        wait_until(lambda: waiting_locks(cursor) == 1, "the migration to wait for the lock")
        migration.kill()
        migration.wait()
    finally:
        blocker.close()

    assert tables_of(postgres, database) == ["alembic_version"]
    migrate(database)
    assert len(tables_of(postgres, database)) == 4


# --- the claim ------------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_fails_with_any_count_of_the_control(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    subprocess.run(
        [*command, "--output", str(tmp_path / "measure")],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    results = load_results(tmp_path)
    assert results.holds
    assert results.counts["rows_acknowledged"] > 0
    assert set(results.control) == set(measure.NONE)
    for name, count in results.control.items():
        assert not measure.claim_holds(results.counts | {name: count})
