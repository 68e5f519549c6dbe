"""no_logging_antipattern: every request leaves a record, and ten questions get the true answer."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import httpx
import jsonschema
import pytest
from pydantic_core import to_json
from sklearn.datasets import load_iris

from chapter5_operations.no_logging_antipattern.app.evidence import CONFIG, QUESTIONS, ask
from chapter5_operations.no_logging_antipattern.app.incidents import INCIDENTS, Played, plan, play
from chapter5_operations.no_logging_antipattern.app.log import Log
from chapter5_operations.no_logging_antipattern.app.main import app
from chapter5_operations.no_logging_antipattern.app.record import Recorder, caller_of
from chapter5_operations.no_logging_antipattern.measure.baselines import access_log, write_records
from chapter5_operations.no_logging_antipattern.measure.times import (
    BAD,
    GOOD,
    HERE,
    OPERATOR,
    PACKAGE,
    ROOT,
    server,
)
from chapter5_operations.no_logging_antipattern.measure.truth import is_right, truth_of
from tools.measure.results import load as load_results

SCHEMA = json.loads((HERE / "app/record.schema.json").read_bytes())
# Of a large log, every so many lines are compared with the schema.
CHECKED = 50
ROWS = load_iris().data.tolist()
# What a record has to say for each question to be answered.
NEEDED = {
    "failed": "status",
    "p99_step": "ms",
    "other_unit": "caller",
    "class_gone": "labels",
    "models": "replica",
    "job": "rows",
    "repeats": "rows",
    "burst": "at",
    "accuracy": "model",
    "to_correct": "id",
}

Answers = dict[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    command = [sys.executable, "-m", "train", "--output", str(directory)]
    subprocess.run(command, cwd=HERE, check=True, capture_output=True)
    return directory


def simulate(models: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs the job as Compose does."""
    env = {"MODEL_DIRECTORY": str(models), "EVIDENCE_DIRECTORY": str(directory / "evidence")}
    command = [sys.executable, "-m", "app.incidents", "--truth", str(directory / "truth")]
    return subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def simulated(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("simulated")
    done = simulate(models, directory)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()[2:]] == [*INCIDENTS]
    return directory


def played(simulated: Path, arm: str = "good") -> Played:
    return Played.model_validate_json((simulated / f"truth/{arm}.json").read_bytes())


@pytest.fixture(scope="module")
def truth(simulated: Path) -> dict[str, list[dict[str, Any]]]:
    return truth_of(played(simulated))


@pytest.fixture(scope="module")
def operator(simulated: Path) -> Iterator[httpx.Client]:
    env = {"EVIDENCE_DIRECTORY": str(simulated / "evidence")}
    with (
        server(OPERATOR, env) as running,
        httpx.Client(base_url=running.url, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the running servers leave something."""
    return tmp_path_factory.mktemp("evidence")


@pytest.fixture(scope="module")
def good(models: Path, evidence: Path) -> Iterator[httpx.Client]:
    env = {"MODEL_DIRECTORY": str(models), "EVIDENCE_DIRECTORY": str(evidence)}
    with server(GOOD, env) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def bad(models: Path, evidence: Path) -> Iterator[httpx.Client]:
    env = {"MODEL_DIRECTORY": str(models), "EVIDENCE_DIRECTORY": str(evidence)}
    with server(BAD, env) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


@pytest.fixture
def log(simulated: Path, tmp_path: Path) -> Path:
    """A copy of the simulated records that a test may change."""
    return Path(shutil.copytree(simulated / "evidence/good", tmp_path / "log"))


def records_in(directory: Path) -> list[dict[str, Any]]:
    """Returns the records, which have to be as their schema says."""
    lines = [line for file in directory.glob("*.jsonl") for line in file.read_bytes().splitlines()]
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for record in records[:: CHECKED if len(records) > 1_000 else 1]:
        jsonschema.validate(record, SCHEMA)
    return records


def last_record(evidence: Path) -> dict[str, Any]:
    return records_in(evidence / "good")[-1]


def answers_of(directory: Path, job: str | None = None) -> Answers:
    """Returns the answers as they are in JSON."""
    found: Answers = json.loads(to_json(ask(directory, [*QUESTIONS], job).answers))
    return found


# --- records --------------------------------------------------------------------------------------


def test_both_servers_answer_alike(good: httpx.Client, bad: httpx.Client) -> None:
    for path in ("/predict", "/predict/label"):
        ours, theirs = (client.post(path, json={"data": ROWS}) for client in (good, bad))
        assert ours.status_code == theirs.status_code == 200
        assert ours.json() == theirs.json()
        assert "x-job-id" in ours.headers
        assert "x-job-id" not in theirs.headers


@pytest.mark.parametrize("path", ["/predict", "/predict/label"])
def test_an_answer_has_its_record_when_the_caller_gets_it(
    good: httpx.Client, evidence: Path, path: str
) -> None:
    rows = [ROWS[0], ROWS[149]]
    answer = good.post(path, json={"data": rows}, headers={"x-caller": "museum-2.north"})
    record = last_record(evidence)
    assert record["id"] == answer.headers["x-job-id"]
    assert (record["caller"], record["path"], record["status"]) == ("museum-2.north", path, 200)
    assert (record["rows"], record["labels"]) == (rows, ["setosa", "virginica"])


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 422), (b'{"data": [[1, 2, 3, null]]}', 422), (b" " * 200_000, 413)],
)
def test_a_refusal_has_its_record(
    good: httpx.Client, evidence: Path, body: bytes, status: int
) -> None:
    answer = good.post("/predict", content=body, headers={"x-caller": "museum"})
    assert answer.status_code == status
    record = last_record(evidence)
    assert (record["status"], record["caller"]) == (status, "museum")
    assert (record.get("rows"), record.get("labels")) == (None, None)


def test_what_is_no_request_for_a_prediction_has_no_record(
    good: httpx.Client, evidence: Path
) -> None:
    before = records_in(evidence / "good")
    for path in ("/health", "/ready", "/metadata", "/predict/test", "/predict/other", "/docs"):
        good.get(path)
    assert records_in(evidence / "good") == before


def test_an_id_of_the_mesh_is_kept(good: httpx.Client, evidence: Path) -> None:
    given = "01234567-89ab-4def-8123-456789abcdef"
    answer = good.post("/predict", json={"data": ROWS[:1]}, headers={"x-request-id": given})
    assert answer.headers["x-job-id"] == last_record(evidence)["id"] == given


@pytest.mark.parametrize("name", [b"", b"a b", b"\xe9", b"a" * 65, b'"', b"a\xff"])
def test_what_is_no_name_of_a_caller_is_not_written(name: bytes) -> None:
    assert caller_of([(b"host", b"a"), (b"x-caller", name)]) is None
    assert caller_of([(b"x-caller", b"a" * 64)]) == "a" * 64
    assert caller_of([]) is None


def test_the_bad_server_leaves_nothing(bad: httpx.Client, evidence: Path) -> None:
    assert bad.post("/predict", json={"data": ROWS[:1]}).status_code == 200
    assert {path.name for path in evidence.iterdir()} <= {"good"}


# --- the simulation -------------------------------------------------------------------------------


def test_every_simulated_request_has_one_record(simulated: Path) -> None:
    records = records_in(simulated / "evidence/good")
    requests = [record for record in records if record["kind"] == "request"]
    receipts = played(simulated).receipts
    assert len(requests) == len(receipts) == 6_000
    assert [record["id"] for record in requests] == [receipt.job_id for receipt in receipts]
    assert {record["status"] for record in requests} == {200, 422, 500}


def test_the_truth_is_not_where_the_operator_looks(simulated: Path) -> None:
    assert {path.name for path in (simulated / "evidence").iterdir()} == {"good"}
    assert {path.suffix for path in (simulated / "evidence/good").iterdir()} == {".jsonl"}


def test_both_arms_get_the_same_requests_and_give_the_same_answers(simulated: Path) -> None:
    ours, theirs = played(simulated).receipts, played(simulated, "bad").receipts
    assert [receipt._replace(job_id=None) for receipt in ours] == theirs


def test_the_simulation_does_not_mix_with_other_records(models: Path, tmp_path: Path) -> None:
    (tmp_path / "evidence/good").mkdir(parents=True)
    (tmp_path / "evidence/good/a.jsonl").write_text("{}\n", "utf-8")
    done = simulate(models, tmp_path)
    assert done.returncode == 1
    assert "the log has records already" in done.stdout
    assert not (tmp_path / "truth").exists()


# --- answers --------------------------------------------------------------------------------------


def test_there_are_ten_questions() -> None:
    assert len(QUESTIONS) == 10
    assert set(NEEDED) == set(QUESTIONS) >= set(INCIDENTS)


def test_all_answers_are_the_truth(operator: httpx.Client, truth: Answers) -> None:
    asked = {"arm": "good", "job": truth["job"][0]["id"]}
    found = operator.get("/answers", params=asked).json()
    assert (found["requests"], found["torn"], found["dropped"]) == (6_000, 0, 0)
    for name in QUESTIONS:
        assert is_right(found["answers"][name], truth[name]), name
        one = operator.get(f"/answers/{name}", params=asked).json()
        assert one["answers"] == {name: found["answers"][name]}


@pytest.mark.parametrize("seed", [3, 9, 11])
def test_the_answers_are_the_truth_of_other_simulated_days(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(Recorder, "log", Log(tmp_path, 2**30, 2**30), raising=False)
    calls = plan(models / "iris.json", seed=seed)
    other = asyncio.run(play(app, calls, models, start=0.0))
    Recorder.log.close()
    told = truth_of(other)
    answers = answers_of(tmp_path, told["job"][0]["id"])
    assert {name for name in QUESTIONS if is_right(answers[name], told[name])} == set(QUESTIONS)


@pytest.mark.parametrize(("question", "field"), NEEDED.items())
def test_an_answer_is_wrong_if_records_do_not_say_what_it_needs(
    log: Path, truth: Answers, question: str, field: str
) -> None:
    (file,) = log.glob("*.jsonl")
    records = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    lines = [json.dumps({**record, field: None}) for record in records]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    answers = answers_of(log, truth["job"][0]["id"])
    assert not is_right(answers[question], truth[question])


def test_an_answer_of_other_rows_is_not_right(truth: Answers) -> None:
    told = json.loads(to_json(truth["models"]))
    assert is_right(told, truth["models"])
    assert is_right([row | {"more": 1} for row in told], truth["models"])
    for other in ([], told[1:], [*told, told[0]], told[::-1], "no data", [*told[1:], {}]):
        assert not is_right(other, truth["models"])


def test_about_the_bad_server_nothing_is_known(operator: httpx.Client) -> None:
    found = operator.get("/answers", params={"arm": "bad"}).json()
    assert found["answers"] == dict.fromkeys(QUESTIONS, "no data")
    assert (found["requests"], found["torn"], found["dropped"]) == (0, 0, 0)


def test_an_access_log_answers_two_questions(simulated: Path, tmp_path: Path) -> None:
    of_bad = played(simulated, "bad")
    write_records(access_log(of_bad), tmp_path / "access")
    answers, truth = answers_of(tmp_path / "access", "0" * 32), truth_of(of_bad)
    right = {name for name in QUESTIONS if is_right(answers[name], truth[name])}
    assert right == {"failed", "burst"}


@pytest.mark.parametrize("path", ["/answers?arm=ugly", "/answers?arm=", "/answers/x?arm=good"])
def test_an_unknown_arm_or_question_is_not_found(operator: httpx.Client, path: str) -> None:
    answer = operator.get(path)
    assert (answer.status_code, "choose" in answer.text) == (404, True)


def test_an_arm_has_to_be_named(operator: httpx.Client) -> None:
    for path in ("/answers", "/answers/failed"):
        assert operator.get(path).status_code == 422


def test_of_an_unknown_job_there_is_no_row(operator: httpx.Client) -> None:
    for job in ("0" * 32, "", "'; DROP TABLE lines"):
        found = operator.get("/answers/job", params={"arm": "good", "job": job})
        assert found.json()["answers"] == {"job": []}


@pytest.mark.parametrize(
    "torn", [b'{"kind":"request","id":"x","cal', b'{"caller":"\xc3', b"\x00\x00", b"null\n", b"["]
)
def test_a_torn_last_line_is_skipped_and_counted(log: Path, truth: Answers, torn: bytes) -> None:
    before = answers_of(log)
    (file,) = log.glob("*.jsonl")
    file.write_bytes(file.read_bytes() + torn)
    found = ask(log, [*QUESTIONS])
    assert (found.requests, found.torn) == (6_000, 1)
    assert json.loads(to_json(found.answers)) == before
    assert is_right(before["failed"], truth["failed"])


@pytest.mark.parametrize("content", [None, b"", b"\n", b'{"kind":"requ', b'{"kind":"outcome"}\n'])
def test_a_log_without_requests_has_no_data(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.jsonl").write_bytes(content)
    found = ask(tmp_path, [*QUESTIONS])
    assert found.answers == dict.fromkeys(QUESTIONS, "no data")
    assert (found.requests, found.dropped) == (0, 0)
    assert found.torn == (content == b'{"kind":"requ')


def test_of_one_request_there_is_no_incident(tmp_path: Path) -> None:
    log = Log(tmp_path, 10_000, 100_000)
    log.append("request", "0" * 32, caller=None, path="/predict", status=503)
    log.close()
    answers = answers_of(tmp_path)
    assert answers["failed"] == [{"requests": 1, "failed": 1, "share": 1.0}]
    assert answers["job"][0]["id"] == "0" * 32
    assert answers["burst"][0]["failed"] == 1
    others = set(QUESTIONS) - {"failed", "job", "burst"}
    assert {name: answers[name] for name in others} == {name: [] for name in others}


def test_records_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    log = Log(tmp_path, 1_000, 4_000)
    written = [
        log.append("request", f"{number:032x}", caller=None, path="/predict", status=200)
        for number in range(100)
    ]
    log.close()
    found = ask(tmp_path, ["failed"])
    assert found.requests == sum(written)
    assert found.dropped == 100 - sum(written) > 0


def test_duckdb_downloads_nothing() -> None:
    with duckdb.connect(config=CONFIG) as connection:
        settings = dict(connection.execute("SELECT name, value FROM duckdb_settings()").fetchall())
    assert settings["autoinstall_known_extensions"] == "false"
    assert settings["autoload_known_extensions"] == "false"
    assert settings["threads"] == "1"


# --- the claim ------------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(models: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure"]
    ended = subprocess.run(
        [*command, "--quick", "--output", str(tmp_path / "measure")],
        cwd=ROOT,
        env={**os.environ, "MODEL_DIRECTORY": str(models)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.holds
    assert results.counts == {
        "questions_right": 10,
        "incidents_found": 6,
        "questions_right_by_access_log": 2,
        "incidents_found_by_access_log": 1,
        "false_alarms": 0,
    }
    assert results.control == {
        "questions_right": 0,
        "incidents_found": 0,
        "false_alarms": 6,
    }
