"""prediction_log_pattern: real servers, shippers and PostgreSQL, killed, suspended and full."""

import asyncio
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import duckdb
import httpx
import jsonschema
import psutil
import pytest

from chapter5_operations.prediction_log_pattern.app import main
from chapter5_operations.prediction_log_pattern.app import ship as shipping
from chapter5_operations.prediction_log_pattern.app.log import (
    Log,
    bytes_in,
    id_of,
    is_sampled,
    line_of,
    version_of,
)
from chapter5_operations.prediction_log_pattern.app.refusals import LoggedProtocol
from chapter5_operations.prediction_log_pattern.app.tables import keep_days, partition_of
from chapter5_operations.prediction_log_pattern.measure.counts import QUICK, claim_holds
from chapter5_operations.prediction_log_pattern.measure.processes import (
    BODY,
    HERE,
    PACKAGE,
    ROOT,
    Database,
    Reader,
    Server,
    Shipper,
)
from chapter5_operations.prediction_log_pattern.train.__main__ import write
from tools.measure.results import load as load_results
from tools.measure.server import wait_until
from tools.run.processes import family_of, pause_all, unpause_all

ID = "0" * 31 + "1"
UUID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
OUTLIER = [[30.0, 30.0, 30.0, 30.0]]
USUAL = json.loads(BODY)["data"]
SCHEMA = json.loads((HERE / "app/record.schema.json").read_bytes())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write(directory)
    return directory


@pytest.fixture(scope="module")
def server() -> Iterator[Database]:
    with Database() as database:
        yield database


@pytest.fixture
def database(server: Database) -> Database:
    """A database without records."""
    server.value("TRUNCATE records, shipped")
    return server


@pytest.fixture(scope="module")
def env(models: Path, server: Database) -> dict[str, str]:
    outlier = str(models / "outlier")
    own = {"MODEL_DIRECTORY": str(models), "OUTLIER_MODEL_DIRECTORY": outlier}
    # However busy the machine is.
    return own | server.variables | {"DATABASE_DEADLINE_SECONDS": "60"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as exits:
        yield exits


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("api"), env) as running:
        yield running


@pytest.fixture(scope="module")
def client(api: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, env: dict[str, str]) -> Iterator[httpx.Client]:
    with (
        Reader(tmp_path_factory.mktemp("reader"), env) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


def lines_in(directory: Path) -> list[dict[str, Any]]:
    """Returns the records of all segments, each of which has to be as its schema says."""
    segments = sorted(directory.glob("*.jsonl"))
    found = [json.loads(line) for path in segments for line in path.read_bytes().splitlines()]
    for record in found:
        jsonschema.validate(record, SCHEMA)
    return found


def last_line(api: Server) -> dict[str, Any]:
    return lines_in(api.directory)[-1]


def small_log(directory: Path, max_bytes: int = 4_000) -> Log:
    return Log(directory, segment_bytes=10**6, max_bytes=max_bytes)


def fill(log: Log) -> int:
    """Appends records until one does not fit, and returns how many have."""
    number = 0
    while log.append("event", ID, number=number):
        number += 1
    return number


# --- the log --------------------------------------------------------------------------------------


def test_what_does_not_fit_is_counted_in_the_log_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{PACKAGE}.app.log.LOOK_SECONDS", 0)
    log = small_log(tmp_path)
    written = fill(log)
    began = datetime.now(UTC)
    for _ in range(9):
        assert not log.append("event", ID)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4_000
    complete = sorted(tmp_path.glob("*.jsonl"))[:-1]
    assert complete
    dropped_bytes = complete[0].stat().st_size
    stored = [json.loads(line) for line in complete[0].read_bytes().splitlines()]
    # As the shipper does.
    complete[0].unlink()
    assert log.append("event", ID, number=-1)
    log.close()
    lines = stored + [
        json.loads(line)
        for path in sorted(tmp_path.glob("*.jsonl"))
        for line in path.read_bytes().splitlines()
    ]
    (dropped,) = [line for line in lines if line["kind"] == "dropped"]
    jsonschema.validate(dropped, SCHEMA)
    assert dropped["count"] == 10
    assert datetime.fromisoformat(dropped["since"]) <= began
    assert began <= datetime.fromisoformat(dropped["until"])
    assert [line["number"] for line in lines if "number" in line] == [*range(written), -1]
    assert dropped_bytes <= 1_000


def test_a_log_that_is_closed_while_it_is_full_still_counts(tmp_path: Path) -> None:
    log = small_log(tmp_path)
    written = fill(log)
    log.close()
    lines = [json.loads(line) for p in tmp_path.iterdir() for line in p.read_bytes().splitlines()]
    assert len(lines) == written + 1
    assert [line["count"] for line in lines if line["kind"] == "dropped"] == [1]


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    log = Log(tmp_path, 10**6, 10**7)
    line_bytes = len(line_of("event", ID, number=0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel writes half of a line, and then refuses, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * line_bytes + line_bytes // 2, limits[1]))
    try:
        written = [log.append("event", ID, number=number) for number in range(4)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert written == [True, True, False, False]
    assert log.append("event", ID, number=4)
    log.close()
    (segment,) = tmp_path.glob("*.jsonl")
    found = [json.loads(line) for line in segment.read_bytes().splitlines()]
    assert [line.get("number", line.get("count")) for line in found] == [0, 1, 2, 4]


def test_a_clock_that_goes_back_overwrites_no_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**18, 0, -1))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock))
    log = Log(tmp_path, segment_bytes=200, max_bytes=10**6)
    for number in range(50):
        assert log.append("event", ID, number=number)
    log.close()
    segments = sorted(tmp_path.glob("*.jsonl"))
    assert len(segments) > 10
    found = [json.loads(line) for path in segments for line in path.read_bytes().splitlines()]
    assert [line["number"] for line in found] == [*range(50)]


def test_a_sample_is_the_same_for_every_process_and_part_of_a_larger_one() -> None:
    ids = [f"{number:032x}" for number in range(20_000)]
    tenth, half = ({each for each in ids if is_sampled(each, share)} for share in (0.1, 0.5))
    assert tenth < half
    assert len(tenth) == pytest.approx(2_000, abs=200)
    assert len(half) == pytest.approx(10_000, abs=400)
    assert all(is_sampled(each, 1.0) for each in ids)


@pytest.mark.parametrize(
    ("header", "is_taken"),
    [(UUID, True), (UUID.upper(), False), (ID, False), ("", False), (f"{UUID}x", False)],
)
def test_only_a_uuid_of_the_mesh_becomes_the_id(header: str, is_taken: bool) -> None:
    found = id_of([(b"host", b"a"), (b"x-request-id", header.encode())])
    assert (found == header) is is_taken
    assert is_taken or len(found) == 32


# --- the API --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "is_test"),
    [
        ("POST", "/predict", False),
        ("POST", "/predict/label", False),
        ("GET", "/predict/test", True),
        ("GET", "/predict/test/label", True),
    ],
)
def test_each_answer_has_a_record_with_its_input_and_its_model(
    api: Server, client: httpx.Client, method: str, path: str, is_test: bool
) -> None:
    rows = client.get("/metadata").json()["sample"] if is_test else [*USUAL, *OUTLIER]
    answer = client.request(method, path, json=None if is_test else {"data": rows})
    content = answer.json()
    record = last_line(api)
    assert answer.headers["x-job-id"] == content["job_id"] == record["id"]
    assert (record["path"], record["data"], record["share"]) == (path, rows, 1)
    kind = "label" if path.endswith("label") else "prediction"
    assert content["prediction"] == record[kind]
    assert content["is_outlier"] == record["is_outlier"] == [False, True][: len(rows)]
    assert content["outlier_score"] == record["outlier_score"]
    assert record["model"] == version_of(client.get("/metadata").json())
    assert ("test" in record) is is_test


def test_the_id_of_the_mesh_is_the_one_of_record_and_answer(
    api: Server, client: httpx.Client
) -> None:
    answer = client.post("/predict", content=BODY, headers={"x-request-id": UUID})
    assert answer.headers["x-job-id"] == answer.json()["job_id"] == last_line(api)["id"] == UUID


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/predict", b"{}", 422, "Field required"),
        ("/predict", b" " * 200_000, 413, "the body is larger than 131072 bytes"),
        ("/predict", b"a,b\n", 415, "the body is of no Content-Type; send JSON"),
        ("/nothing", b"{}", 404, "Not Found"),
        ("/health", b"{}", 405, "Method Not Allowed"),
    ],
)
def test_each_refusal_has_a_record_with_its_reason_and_without_its_body(
    api: Server, client: httpx.Client, path: str, body: bytes, status: int, reason: str
) -> None:
    answer = client.post(path, content=body)
    assert answer.status_code == status
    record = last_line(api)
    assert record.pop("at")
    expected = {"kind": "refusal", "id": answer.headers["x-job-id"], "status": status}
    assert record == expected | {"reason": reason}


def test_an_unexpected_error_has_an_id_and_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path, 10**6, 10**7)
    monkeypatch.setattr(LoggedProtocol, "log", log, raising=False)
    # Without a model, the handler fails.
    transport = httpx.ASGITransport(main.app, raise_app_exceptions=False)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.post("/predict", content=BODY)

    answer = asyncio.run(ask())
    log.close()
    (record,) = lines_in(tmp_path)
    assert answer.status_code == record["status"] == 500
    assert answer.headers["x-job-id"] == record["id"]
    assert record["reason"] == "Internal Server Error"


def test_a_closed_log_writes_nowhere(tmp_path: Path) -> None:
    log = Log(tmp_path, 10**6, 10**7)
    log.append("event", ID, event_id="1", event="label", value="setosa")
    log.close()
    assert not log.append("event", ID)
    assert len(lines_in(tmp_path)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"job_id": "x"},
        {"job_id": ID[1:]},
        {"job_id": 1},
        {"event_id": None},
        {"event_id": ""},
        {"event_id": "x" * 101},
        {"event": "a\x00b"},
        {"value": "x" * 1_001},
        {"value": 1},
        {"value": "\x00"},
        {"user": "x"},
    ],
    ids=lambda change: str(change)[:30],
)
def test_an_event_that_cannot_be_stored_is_refused(
    api: Server, client: httpx.Client, change: dict[str, Any]
) -> None:
    event = {"job_id": ID, "event_id": "1", "event": "label", "value": "setosa"}
    assert client.post("/event", json=event).status_code == 202
    assert last_line(api)["value"] == "setosa"
    changed = {name: value for name, value in (event | change).items() if value is not None}
    assert client.post("/event", json=changed).status_code == 422
    assert last_line(api)["kind"] == "refusal"


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"LOG_SAMPLE": "0"}, "greater than 0"),
        ({"LOG_SAMPLE": "-1"}, "greater than 0"),
        ({"LOG_SAMPLE": "1.1"}, "less than or equal to 1"),
        ({"LOG_DIRECTORY": "/dev/null/log"}, "Not a directory: '/dev/null/log'"),
        ({"OUTLIER_MODEL_DIRECTORY": "/nowhere"}, "no usable model in /nowhere"),
    ],
    ids=str,
)
def test_it_refuses_to_start(env: dict[str, str], variables: dict[str, str], reason: str) -> None:
    command = [sys.executable, "-m", "uvicorn", f"{PACKAGE}.app.main:app", "--port", "1"]
    variables = {**os.environ, **env, **variables}
    ended = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert reason in ended.stderr


def test_a_sample_holds_all_outliers_refusals_and_events(
    tmp_path: Path, env: dict[str, str], stack: ExitStack
) -> None:
    api = stack.enter_context(Server(tmp_path, env | {"LOG_SAMPLE": "0.2"}))
    client = stack.enter_context(httpx.Client(base_url=api.url, timeout=60))
    usual, outliers = (
        [client.post("/predict", json={"data": rows}).json()["job_id"] for _ in range(100)]
        for rows in (USUAL, OUTLIER)
    )
    client.post("/predict", content=b"{}")
    event = {"job_id": usual[0], "event_id": "1", "event": "label", "value": "setosa"}
    client.post("/event", json=event)
    found = lines_in(api.directory)
    kept = {record["id"]: record["share"] for record in found if record["kind"] == "prediction"}
    assert {each for each in usual if each in kept} == {
        each for each in usual if is_sampled(each, 0.2)
    }
    assert set(outliers) < set(kept)
    assert {kept[each] for each in outliers} == {1.0}
    assert {kept[each] for each in usual if each in kept} == {0.2}
    assert [record["kind"] for record in found[-2:]] == ["refusal", "event"]


@pytest.mark.parametrize("is_required", [False, True])
def test_a_full_log_is_counted_and_if_required_refuses(
    tmp_path: Path, env: dict[str, str], database: Database, stack: ExitStack, is_required: bool
) -> None:
    limits = {"LOG_MAX_BYTES": "20000", "LOG_REQUIRED": str(is_required)}
    api = stack.enter_context(Server(tmp_path, env | limits))
    client = stack.enter_context(httpx.Client(base_url=api.url, timeout=60))
    answers = [client.post("/predict", content=BODY) for _ in range(100)]
    event = {"job_id": ID, "event_id": "1", "event": "label", "value": "setosa"}
    assert {answer.status_code for answer in answers} == ({200, 503} if is_required else {200})
    # They are shorter, so some still fit.
    while answers[-1].status_code != 503 or len(answers) == 100:
        answers.append(client.post("/event", json=event))
    assert answers[-1].headers["retry-after"] == "1"
    assert client.get("/ready").status_code == 200
    lines_in(api.directory)
    database.ship(api.directory)
    answers.append(client.post("/event", json=event))
    assert answers[-1].status_code == 202
    api.stop()
    database.ship(api.directory)
    written = database.value("SELECT count(*) FROM records WHERE kind <> 'dropped'")
    dropped = database.value("SELECT sum((body ->> 'count')::int) FROM records")
    assert dropped > 0
    assert written + dropped == len(answers)


# --- the shipper ----------------------------------------------------------------------------------


def written_segment(directory: Path, lines: list[bytes]) -> Path:
    """Writes lines as a process that has ended has left them."""
    directory.mkdir(exist_ok=True)
    path = directory / "host-1.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def event_lines(count: int, **fields: Any) -> list[bytes]:
    return [line_of("event", f"{number:032x}", number=number, **fields) for number in range(count)]


def stored(database: Database) -> list[int]:
    query = "SELECT (body ->> 'number')::int AS number FROM records WHERE kind = 'event'"
    return [row.number for row in database.rows(f"{query} ORDER BY segment, position")]


def test_two_shippers_at_one_segment_store_each_line_once(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "BATCH_BYTES", 5_000)
    lines = event_lines(2_000)
    written_segment(tmp_path, lines)
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(database.ship, tmp_path) for _ in range(3)]:
            done.result()
    # A lock of one shipper looks like a writer to the other, which then leaves the end to it.
    database.ship(tmp_path)
    assert stored(database) == [*range(2_000)]
    assert [*tmp_path.iterdir()] == []


def test_a_segment_is_deleted_when_it_is_complete_and_stored(
    tmp_path: Path, database: Database
) -> None:
    log = Log(tmp_path, 10**6, 10**7)
    log.append("event", ID, number=1)
    database.ship(tmp_path)
    assert stored(database) == [1]
    assert len([*tmp_path.glob("*.jsonl")]) == 1
    log.append("event", ID, number=2)
    log.close()
    database.ship(tmp_path)
    assert stored(database) == [1, 2]
    assert [*tmp_path.glob("*.jsonl")] == []


def test_half_a_line_of_a_living_process_waits(tmp_path: Path, database: Database) -> None:
    log = Log(tmp_path, 10**6, 10**7)
    (line,) = event_lines(1)
    os.write(log.file, line + line[:20])
    database.ship(tmp_path)
    assert stored(database) == [0]
    assert database.value("SELECT sum(torn) FROM shipped") == 0
    os.write(log.file, line[20:])
    log.close()
    database.ship(tmp_path)
    assert stored(database) == [0, 0]


TORN = {
    "half a line": b'{"kind": "event", "id"',
    "nothing": b"\n",
    "no JSON": b"hello\n",
    "not UTF-8": b"\xff\xfe\n",
    "NaN": b"NaN\n",
    "a list": b"[]\n",
    "no kind": b'{"id": null, "at": "2026-11-27T00:00:00Z"}\n',
    "no time": b'{"kind": "event", "id": null, "at": "yesterday"}\n',
    "no time zone": b'{"kind": "event", "id": null, "at": "2026-11-27T00:00:00"}\n',
    "a time zone that PostgreSQL lacks": b'{"kind": "event", "id": null, '
    b'"at": "2026-11-27T00:00:00+23:00"}\n',
    "a zero character": line_of("event", ID, value="\x00"),
    "another ID": line_of("event", "x"),
    "a tab": b'{"kind":\t"event", "id": null, "at": "2026-11-27T00:00:00Z"}\n',
    "two lines without a break": line_of("event", ID)[:-1] + line_of("event", ID),
}


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
def test_a_line_that_is_no_record_is_counted_and_holds_nothing_up(
    tmp_path: Path, database: Database, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before, after = event_lines(20)[:10], event_lines(20)[10:]
    is_half = not torn.endswith(b"\n")
    written_segment(tmp_path, [*before, *after, torn] if is_half else [*before, torn, *after])
    database.ship(tmp_path)
    assert stored(database) == [*range(20)]
    assert database.value("SELECT torn FROM shipped") == 1
    assert "host-1.jsonl: 1 lines" in caplog.text
    assert [*tmp_path.iterdir()] == []


def test_a_shipper_takes_the_folders_below_its_own_too(tmp_path: Path, database: Database) -> None:
    """Two processes on one machine may even name a segment alike."""
    for folder, line in zip(("one", "two"), event_lines(2), strict=True):
        written_segment(tmp_path / folder, [line])
    assert bytes_in(tmp_path) == sum(map(len, event_lines(2)))
    database.ship(tmp_path)
    assert stored(database) == [0, 1]
    segments = database.rows("SELECT segment FROM shipped ORDER BY segment")
    assert [row.segment for row in segments] == ["one/host-1.jsonl", "two/host-1.jsonl"]
    assert bytes_in(tmp_path) == 0


def test_a_line_longer_than_a_batch_is_skipped(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "BATCH_BYTES", 2_000)
    first, second = event_lines(2)
    written_segment(tmp_path, [first, line_of("event", ID, value="x" * 5_000), second])
    database.ship(tmp_path)
    assert stored(database) == [0, 1]
    assert database.value("SELECT torn FROM shipped") > 0


def test_all_that_json_can_say_arrives_as_it_was_written(
    tmp_path: Path, database: Database
) -> None:
    value = 'a\\b\tc\nd\re"f\\N \\. \u2028 ü 🌸'
    written_segment(tmp_path, [line_of("event", ID, number=1, value=value, at_risk=[1e-300, 0.1])])
    database.ship(tmp_path)
    found = database.value("SELECT body FROM records")
    assert (found["value"], found["at_risk"]) == (value, [1e-300, 0.1])


def test_a_clock_decides_neither_over_partitions_nor_over_deletion(
    tmp_path: Path, database: Database
) -> None:
    lines = [line.replace(b'"at":"20', b'"at":"19') for line in event_lines(3)]
    written_segment(tmp_path, lines)
    database.ship(tmp_path)
    with database.engine.connect() as connection:
        keep_days(connection, 1)
    assert stored(database) == [0, 1, 2]


def test_days_that_are_over_are_dropped_and_tomorrow_is_there(database: Database) -> None:
    today: date = database.value("SELECT (now() AT TIME ZONE 'UTC')::date")
    old, kept = today - timedelta(days=8), today - timedelta(days=7)
    for day in (old, kept):
        bounds = f"FROM ('{day}') TO ('{day + timedelta(days=1)}')"
        database.value(f"CREATE TABLE {partition_of(day)} PARTITION OF records FOR VALUES {bounds}")

    def keep() -> None:
        with database.engine.connect() as connection:
            keep_days(connection, 7)

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(keep) for _ in range(3)]:
            done.result()
    names = {
        row.name
        for row in database.rows(
            "SELECT relid::regclass::text AS name FROM pg_partition_tree('records') WHERE isleaf"
        )
    }
    assert names == {partition_of(day) for day in (kept, today, today + timedelta(days=1))}


def run_shipper(
    database: Database, directory: Path, stack: ExitStack, seconds: float
) -> Callable[[], None]:
    """Runs a shipper in a thread, and returns what stops it and waits for its end."""
    stopping = Event()
    settings = database.settings.model_copy(
        update={"log_directory": directory, "database_deadline_seconds": seconds}
    )
    threads = stack.enter_context(ThreadPoolExecutor())
    done = threads.submit(shipping.run, settings, stopping)
    stack.callback(stopping.set)

    def stop() -> None:
        stopping.set()
        done.result(60)

    return stop


@pytest.mark.parametrize("is_hung", [False, True], ids=["dead", "hung"])
def test_a_shipper_goes_on_when_its_database_is_back(
    tmp_path: Path, stack: ExitStack, caplog: pytest.LogCaptureFixture, is_hung: bool
) -> None:
    caplog.set_level(logging.WARNING)
    database = stack.enter_context(Database())
    log = Log(tmp_path, 10**6, 10**7)
    stop = run_shipper(database, tmp_path, stack, seconds=1)
    log.append("event", ID, number=0)
    wait_until(lambda: stored(database) == [0], "the first record")
    if is_hung:
        pause_all(partial(family, database))
    else:
        database.kill()
    log.append("event", ID, number=1)
    wait_until(lambda: "PostgreSQL does not answer, the log has " in caplog.text, "the shipper")
    if is_hung:
        unpause_all(family(database))
    else:
        database.start()
    log.append("event", ID, number=2)
    wait_until(lambda: stored(database) == [0, 1, 2], "all records")
    log.close()
    stop()


def family(database: Database) -> list[psutil.Process]:
    pid = database.process.pid
    return [psutil.Process(pid), *family_of(pid)]


def test_a_shipper_that_is_told_to_stop_ships_what_is_there(
    tmp_path: Path, database: Database, env: dict[str, str], stack: ExitStack
) -> None:
    (tmp_path / "log").mkdir()
    shipper = stack.enter_context(Shipper(tmp_path, env))
    wait_until(shipper.alive.exists, "the shipper", 60)
    shipper.process.send_signal(signal.SIGSTOP)
    written_segment(tmp_path / "log", event_lines(20_000))
    assert shipper.stop() == 0
    assert stored(database) == [*range(20_000)]
    assert not shipper.alive.exists()
    assert "stopped, the log has 0 bytes" in shipper.log.read_text()


def test_a_shipper_without_a_database_stops_within_its_bound(
    tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipping, "DRAIN_SECONDS", 0.5)
    database = stack.enter_context(Database())
    database.kill()
    segment = written_segment(tmp_path, event_lines(3))
    run_shipper(database, tmp_path, stack, seconds=1)()
    assert segment.exists()


# --- what it is for -------------------------------------------------------------------------------


def test_what_was_answered_can_be_found_joined_and_replayed(
    tmp_path: Path, database: Database, env: dict[str, str], reader: httpx.Client, stack: ExitStack
) -> None:
    api = stack.enter_context(Server(tmp_path, env))
    client = stack.enter_context(httpx.Client(base_url=api.url, timeout=60))
    usual = client.post("/predict", content=BODY).json()
    outlier = client.post("/predict/label", json={"data": OUTLIER}).json()
    client.get("/predict/test")
    client.post("/predict", content=b"{}")
    twice = [client.post("/predict", content=BODY, headers={"x-request-id": UUID}) for _ in "12"]
    assert [answer.status_code for answer in twice] == [200, 200]
    event = {"job_id": usual["job_id"], "event_id": "1", "event": "label", "value": "virginica"}
    for change in ({}, {"value": "setosa"}, {"event_id": "2"}, {"job_id": ID}):
        assert client.post("/event", json=event | change).status_code == 202
    api.stop()
    database.ship(api.directory)

    counts = {"predictions": 4, "tests": 1, "refusals": 1, "events": 3, "dropped": 0, "torn": 0}
    others = {"events_without_prediction": 1, "bytes_waiting": 0}
    assert reader.get("/log/counts").json() == counts | others

    entry = reader.get(f"/log/{usual['job_id']}").json()
    (record,) = entry["data"]
    assert record["prediction"] == usual["prediction"]
    # The first of two events with the same ID.
    assert [(each["event_id"], each["value"]) for each in entry["events"]] == [
        ("1", "virginica"),
        ("2", "virginica"),
    ]
    assert len(reader.get(f"/log/{UUID}").json()["data"]) == 2
    outcomes = database.rows("SELECT id, event_id, times FROM outcomes ORDER BY at, event_id")
    assert [(row.event_id, row.times) for row in outcomes if row.id == usual["job_id"]] == [
        ("1", 1),
        ("2", 1),
    ]
    assert [row.times for row in outcomes if row.id == UUID] == [2, 2]

    ids = [usual["job_id"], outlier["job_id"], UUID, UUID]
    for query, expected in {
        "": ids[::-1],
        "?limit=1": ids[3:],
        "?outlier=true": ids[1:2],
        "?outlier=false": [UUID, UUID, ids[0]],
        f"?label={outlier['prediction'][0]}": ids[::-1],
        "?label=rose": [],
        "?since=2000-01-01T00:00:00Z": ids[::-1],
        "?since=0001-01-01T00:00:00%2B23:59": ids[::-1],
        "?since=9999-12-31T23:59:59-23:59": [],
    }.items():
        assert [each["id"] for each in reader.get(f"/log{query}").json()["data"]] == expected, query

    for answer in (usual, outlier):
        replay = reader.post(f"/log/{answer['job_id']}/replay").json()
        assert replay["equal"] is True
    assert reader.post(f"/log/{ID}/replay").status_code == 404
    database.value("""UPDATE records SET body = jsonb_set(body, '{model}', '"0"')""")
    assert reader.post(f"/log/{usual['job_id']}/replay").status_code == 409


@pytest.mark.parametrize("job_id", ["unknown", "f" * 32, "%00", f"{ID}%0A", "x" * 10_000])
def test_an_unknown_id_is_not_found(reader: httpx.Client, job_id: str) -> None:
    assert reader.get(f"/log/{job_id}").status_code == 404
    assert reader.post(f"/log/{job_id}/replay").status_code == 404


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", "since=yesterday", "since=2026-11-27", "since=1",
     "outlier=maybe", "label=%00", f"label={'x' * 101}"],
)  # fmt: skip
def test_a_bad_query_is_refused(reader: httpx.Client, query: str) -> None:
    answer = reader.get(f"/log?{query}")
    assert (answer.status_code, "detail" in answer.json()) == (422, True)


def test_without_a_database_the_reader_refuses_and_the_api_answers(
    tmp_path: Path, env: dict[str, str], client: httpx.Client, stack: ExitStack
) -> None:
    database = stack.enter_context(Database())
    own = env | database.variables | {"DATABASE_DEADLINE_SECONDS": "1"}
    running = stack.enter_context(Reader(tmp_path, own))
    reader = stack.enter_context(httpx.Client(base_url=running.url, timeout=60))
    pause_all(partial(family, database))
    hung = reader.get("/log")
    unpause_all(family(database))
    database.kill()
    for answer in (hung, *map(reader.get, ("/ready", "/log/counts", f"/log/{ID}"))):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert reader.get("/health").status_code == 200
    # The API does not know of a database.
    assert client.get("/ready").status_code == 200
    assert client.post("/predict", content=BODY).status_code == 200


def test_duckdb_reads_the_segments_as_they_are(api: Server, client: httpx.Client) -> None:
    job_id = client.post("/predict", content=BODY).json()["job_id"]
    query = "SELECT kind, prediction FROM read_json(?) WHERE id = ?"
    found = duckdb.execute(query, [f"{api.directory}/*.jsonl", job_id]).fetchall()
    ((kind, prediction),) = found
    assert kind == "prediction"
    assert len(prediction[0]) == 3


# --- the claim ------------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_controls_do_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    command += ["--output", str(tmp_path / "measure")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path)
    assert results.holds
    assert results.counts["kills"] == 3
    assert set(results.control) == set(results.targets)
    assert results.control["replayed_unequal"] == results.counts["replayed"] == QUICK.replayed
    for name, count in results.control.items():
        assert count > 0
        assert not claim_holds(results.counts | {name: count}, QUICK)
