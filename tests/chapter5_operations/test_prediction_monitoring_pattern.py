"""prediction_monitoring_pattern: judged samples; a real API, shipper, monitor and Prometheus."""

import json
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import psutil
import pytest
import yaml

from chapter5_operations.prediction_monitoring_pattern.app import baseline, windows
from chapter5_operations.prediction_monitoring_pattern.app.callers import FAULTS
from chapter5_operations.prediction_monitoring_pattern.app.judge import (
    Check,
    Sample,
    judge,
    speaking,
)
from chapter5_operations.prediction_monitoring_pattern.app.log import Log
from chapter5_operations.prediction_monitoring_pattern.app.observed import metadata
from chapter5_operations.prediction_monitoring_pattern.app.settings import Settings
from chapter5_operations.prediction_monitoring_pattern.measure.live import (
    ALERTS,
    IMAGE,
    Pattern,
    listen,
    named_without_monitor,
)
from chapter5_operations.prediction_monitoring_pattern.measure.processes import (
    HERE,
    Database,
    Monitor,
    Server,
)
from chapter5_operations.prediction_monitoring_pattern.measure.rates import (
    CHECKS,
    World,
    count_false_alarms,
    notice,
)
from chapter5_operations.prediction_monitoring_pattern.train.__main__ import write
from tools.measure.server import wait_until
from tools.run.binaries import find
from tools.run.processes import family_of, pause_all, unpause_all

MODEL = "1-000000000000"
OTHER = "2-ffffffffffff"
BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
SETTINGS = Settings(window_seconds=10, baseline_rows=100, baseline_wait_seconds=0)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write(directory)
    return directory


@pytest.fixture
def world(models: Path) -> World:
    return World(models)


@pytest.fixture(scope="module")
def server() -> Iterator[Database]:
    with Database() as database:
        with database.engine.begin() as connection:
            metadata.create_all(connection)
        yield database


@pytest.fixture
def database(server: Database) -> Database:
    """A database in which nothing is stored."""
    server.value("TRUNCATE records, shipped, baselines, windows, incidents")
    return server


@pytest.fixture(scope="module")
def monitor(tmp_path_factory: pytest.TempPathFactory, server: Database) -> Iterator[httpx.Client]:
    env = server.variables | {"DATABASE_DEADLINE_SECONDS": "60", "WINDOW_SECONDS": "10"}
    with (
        Monitor(tmp_path_factory.mktemp("monitor"), env) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield client


# --- the checks -----------------------------------------------------------------------------------


def test_clean_windows_are_silent_where_a_fixed_share_alarms(world: World) -> None:
    alarms, by_mean = count_false_alarms(world, windows=200, rows=120)
    assert alarms == 0
    assert by_mean > 50


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_noticed_by_its_own_check(world: World, fault: str) -> None:
    assert notice(world, fault, rows=120, tries=5) == (1, 2)


def test_without_a_fault_nothing_is_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "scale", lambda _, __, drawn: drawn)
    assert notice(world, "scale", rows=120, tries=5).share == 0


def test_one_window_is_not_enough(world: World) -> None:
    reference = world.sample(1_000)
    wrong, usual = (judge(world.sample(120, fault), reference) for fault in ("scale", None))
    assert "inputs" in speaking(wrong, wrong)
    assert not speaking(wrong, usual) | speaking(usual, wrong) | speaking(wrong, [])


@pytest.mark.parametrize(("rows", "has_value"), [(59, False), (60, True)])
def test_too_few_rows_are_not_fine(world: World, rows: int, has_value: bool) -> None:
    checks = {check.name: check for check in judge(world.sample(rows, "scale"), world.sample(500))}
    assert set(checks) == {"inputs", "labels", "outliers", "repeats", "accuracy"}
    assert [checks[name].p_value is not None for name in ("inputs", "labels")] == [has_value] * 2


def test_accuracy_needs_outcomes(world: World) -> None:
    sample = world.sample(100)
    untold = sample._replace(right=19, wrong=0)
    for window, reference in ((sample, untold), (untold, sample)):
        assert judge(window, reference)[-1] == Check("accuracy", None)


def one_value(value: float, count: int = 100) -> Sample:
    return Sample(np.full((count, 4), value), ["setosa"] * count, [False] * count)


@pytest.mark.parametrize("value", [1.0, np.nan, np.inf, 1e38])
def test_samples_without_variance_or_numbers_are_judged_without_a_warning(
    world: World, value: float
) -> None:
    usual, constant = world.sample(200), one_value(value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = judge(constant, constant)
        found = judge(constant, usual)
        judge(usual, constant)
    assert all(check.p_value == 1 for check in same[:-1])
    assert {"inputs", "labels", "repeats"} <= speaking(found, found)


# --- windows of the log ---------------------------------------------------------------------------


def seed(
    database: Database,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    sample: Sample,
    began: datetime,
    seconds: float,
    model: str = MODEL,
    outcome: str = "",
) -> None:
    """Stores the rows of a sample as predictions that are spread over a time."""
    length = timedelta(seconds=seconds)
    clock = (began + length * number / len(sample.rows) for number in count())

    class Clock(datetime):
        @classmethod
        def now(cls, _: Any = None) -> Self:
            return cls.fromtimestamp(next(clock).timestamp(), UTC)

    monkeypatch.setattr(f"{Log.__module__}.datetime", Clock)
    log = Log(directory, 10**7, 10**8)
    prefix = f"{hash((began, model)) & 0xFFFFFFFF:08x}"
    for number, (row, label, is_outlier) in enumerate(
        zip(sample.rows.tolist(), sample.labels, sample.is_outlier, strict=True)
    ):
        job_id = f"{prefix}{number:024x}"
        body = {"data": [row], "label": [label], "is_outlier": [is_outlier], "model": model}
        log.append("prediction", job_id, **body)
    if outcome:
        clock = (began for _ in count())
        for number in range(len(sample.rows)):
            event = {"event_id": "1", "event": "label", "value": outcome}
            # Twice, as a caller that has got no answer does.
            for _ in range(2):
                log.append("event", f"{prefix}{number:024x}", **event)
    log.close()
    database.ship(directory)


Seed = Callable[..., None]


@pytest.fixture
def seeded(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seed:
    def store(sample: Sample, began: datetime, seconds: float = 10, **options: Any) -> None:
        seed(database, tmp_path, monkeypatch, sample, began, seconds, **options)

    return store


def at(seconds: float) -> datetime:
    return BEGAN + timedelta(seconds=seconds)


def judge_all(database: Database) -> list[Any]:
    with database.engine.connect() as connection:
        while True:
            with connection.begin():
                if not windows.judge_next(connection, SETTINGS):
                    break
    return database.rows("SELECT * FROM windows ORDER BY ended, model")


def test_windows_do_not_overlap_and_wait_for_the_log(
    database: Database, seeded: Seed, world: World
) -> None:
    seeded(world.sample(100), at(0))
    seeded(world.sample(80), at(10))
    seeded(world.sample(70), at(25))
    assert [(row.ended, row.rows) for row in judge_all(database)] == [
        (at(10), 100),
        (at(20), 80),
        (at(30), 35),
    ]
    # The log has reached the 35th second, so the window until 40 is not complete.
    seeded(world.sample(50), at(36), 10)
    assert [row.rows for row in judge_all(database)] == [100, 80, 35, 35 + 20]
    assert [bool(row.checks) for row in judge_all(database)] == [False, True, True, True]


def test_a_clock_that_is_ahead_closes_no_window(
    database: Database, seeded: Seed, world: World
) -> None:
    now: datetime = database.value("SELECT now()")
    began = datetime.fromtimestamp(now.timestamp() // 10 * 10, UTC)
    seeded(world.sample(100), began, 0.1)
    seeded(world.sample(1), began + timedelta(days=1))
    with database.engine.begin() as connection:
        settings = SETTINGS.model_copy(update={"window_seconds": 1e6})
        assert not windows.judge_next(connection, settings)


def test_two_models_in_one_window_are_judged_apart(
    database: Database, seeded: Seed, world: World
) -> None:
    for model in (MODEL, OTHER):
        seeded(world.sample(200), at(0), model=model)
    for began in (10, 20):
        seeded(world.sample(120), at(began), model=MODEL)
        seeded(world.sample(120, "scale"), at(began), model=OTHER)
    seeded(world.sample(10), at(31))
    judge_all(database)
    with database.engine.begin() as connection:
        newest = windows.newest(connection, 2)
    found = {
        model: speaking(*([Check(**check) for check in row.checks] for row in rows))
        for model, rows in newest.items()
    }
    assert found[MODEL] == set()
    assert "inputs" in found[OTHER]


def test_tests_are_no_traffic_and_an_outcome_counts_once(
    database: Database, seeded: Seed, world: World
) -> None:
    sample = world.sample(100)
    seeded(sample, at(0), outcome="setosa")
    right = sample.labels.count("setosa")
    with database.engine.begin() as connection:
        found = baseline.window_of(connection, MODEL, (at(0), at(10)))
        assert (found.right, found.wrong) == (right, 100 - right)
    database.value("""UPDATE records SET body = body || '{"test": true}'""")
    assert judge_all(database) == []


def test_numbers_that_are_not_finite_are_judged(
    database: Database, seeded: Seed, world: World
) -> None:
    usual = world.sample(200)
    seeded(usual, at(0))
    for began in (10, 20):
        broken = world.sample(100)
        broken.rows[::2, 1] = np.nan
        seeded(broken, at(began))
    seeded(world.sample(10), at(31))
    *_, before, last = judge_all(database)
    checks = [[Check(**check) for check in row.checks] for row in (last, before)]
    assert "inputs" in speaking(*checks)
    assert checks[0][0].detail == "feature 1"


def test_a_baseline_is_taken_once_and_anew_on_demand(
    database: Database, seeded: Seed, world: World, monitor: httpx.Client
) -> None:
    refused = monitor.post("/baseline", params={"model": MODEL})
    assert refused.status_code == 409
    assert refused.json() == {"detail": "the log has fewer than 60 predictions of this model"}
    assert monitor.post("/baseline").status_code == 409
    seeded(world.sample(1_000), at(0))
    seeded(world.sample(300, "scale"), at(10))
    seeded(world.sample(300, "scale"), at(21))
    query = "SELECT count(*) FROM windows WHERE checks <> '[]'"
    wait_until(lambda: database.value(query) == 1, "a judged window", 60)
    assert "differs" not in monitor.get("/").text
    wait_until(lambda: database.value("SELECT count(*) FROM windows") == 2, "two windows", 60)
    first = database.value("SELECT ended FROM baselines")
    assert at(9) < first <= at(10)
    answer = monitor.post("/baseline", params={"model": MODEL})
    assert answer.json() == {"model": MODEL, "rows": 1_000}
    assert database.value("SELECT ended FROM baselines") > at(30)


def test_a_clock_that_goes_back_judges_nothing_twice(
    database: Database, seeded: Seed, world: World
) -> None:
    for began in (0, 10, 20):
        seeded(world.sample(80), at(began))
    seeded(world.sample(1), at(31))
    before = judge_all(database)
    seeded(world.sample(80), at(5), model=OTHER)
    assert judge_all(database) == before
    assert [row.rows for row in before] == [80, 80, 80]


# --- the monitor ----------------------------------------------------------------------------------


def test_two_monitors_judge_each_window_once(
    server: Database, seeded: Seed, world: World, tmp_path: Path
) -> None:
    server.value("DROP TABLE baselines, windows, incidents")
    for began in range(0, 100, 10):
        seeded(world.sample(120), at(began))
    seeded(world.sample(1), at(101))
    env = server.variables | {"WINDOW_SECONDS": "10", "BASELINE_ROWS": "100"}
    with ExitStack() as stack:
        monitors = [stack.enter_context(Monitor(tmp_path / name, env)) for name in "ab"]
        query = "SELECT count(*) FROM windows"
        wait_until(lambda: server.value(query) == 10, "all windows to be judged", 60)
        pages = [httpx.get(f"{each.url}/", timeout=60) for each in monitors]
    assert [page.status_code for page in pages] == [200, 200]
    rows = server.rows("SELECT rows FROM windows ORDER BY ended")
    assert [row.rows for row in rows] == [120] * 10
    assert server.value("SELECT count(*) FROM baselines") == 1


def test_a_suspended_database_delays_windows_and_loses_none(
    server: Database, seeded: Seed, world: World, tmp_path: Path
) -> None:
    env = server.variables | {"WINDOW_SECONDS": "10", "DATABASE_DEADLINE_SECONDS": "1"}
    with Monitor(tmp_path, env) as monitor:
        pause_all(partial(family, server))
        try:
            refused = httpx.get(f"{monitor.url}/ready", timeout=60)
            assert refused.status_code == 503
            assert refused.json() == {"detail": "the database is not available"}
            assert refused.headers["retry-after"] == "1"
            assert httpx.get(f"{monitor.url}/health", timeout=60).status_code == 200
            assert httpx.get(f"{monitor.url}/metrics", timeout=60).status_code == 200
            posted = httpx.post(
                f"{monitor.url}/api/v2/alerts", json=[alert("A", BEGAN, BEGAN)], timeout=60
            )
            assert posted.status_code == 503
        finally:
            unpause_all(family(server))
        seeded(world.sample(80), at(0))
        seeded(world.sample(1), at(11))
        query = "SELECT count(*) FROM windows"
        wait_until(lambda: server.value(query) == 1, "the window", 60)


def family(database: Database) -> list[psutil.Process]:
    pid = database.process.pid
    return [psutil.Process(pid), *family_of(pid)]


def alert(name: str, began: datetime, ended: datetime, **labels: str) -> dict[str, Any]:
    return {
        "labels": {"alertname": name, "severity": "page", **labels},
        "annotations": {"summary": "<b>Look.</b>", "runbook_url": "http://localhost/x"},
        "startsAt": began.isoformat(),
        "endsAt": ended.isoformat(),
        "generatorURL": "http://prometheus/graph",
    }


def test_an_alert_that_is_sent_again_is_one_incident(
    database: Database, monitor: httpx.Client
) -> None:
    began = datetime.now(UTC) - timedelta(minutes=9)
    soon, past = datetime.now(UTC) + timedelta(minutes=4), datetime.now(UTC)
    for ended in (soon, soon + timedelta(minutes=1), past, past):
        assert monitor.post("/api/v2/alerts", json=[alert("A", began, ended)]).status_code == 200
    again = [alert("A", began + timedelta(minutes=8), soon), alert("A", began, soon, model="b")]
    assert monitor.post("/api/v2/alerts", json=again).status_code == 200
    found = monitor.get("/incidents").json()["data"]
    assert [each["name"] for each in found] == ["A"] * 3
    assert [datetime.fromisoformat(each["ended"]) > past for each in found].count(True) == 2
    page = monitor.get("/")
    assert page.text.count("firing") == 2
    assert "<b>" not in page.text
    assert "script" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 422),
        (b"null", 422),
        (b"[1]", 422),
        (b'[{"labels": {}}]', 422),
        (json.dumps([alert("\x00", BEGAN, BEGAN)]).encode(), 422),
        (json.dumps([alert("A", BEGAN, BEGAN) | {"endsAt": "soon"}]).encode(), 422),
        (b"[" + b" " * 1_100_000 + b"]", 413),
        (b"[]", 200),
    ],
    ids=lambda value: str(value)[:20],
)
def test_alerts_that_are_none_are_refused(monitor: httpx.Client, body: bytes, status: int) -> None:
    assert monitor.post("/api/v2/alerts", content=body).status_code == status


def test_every_alert_has_a_section_in_the_playbook(monitor: httpx.Client) -> None:
    groups = yaml.safe_load((HERE / "rules.yml").read_text("utf-8"))["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    sections = [
        line.removeprefix("## ")
        for line in (HERE / "playbook.md").read_text("utf-8").splitlines()
        if line.startswith("## ")
    ]
    assert sections == [*rules]
    for name, rule in rules.items():
        path = httpx.URL(rule["annotations"]["runbook_url"]).path
        assert path == f"/playbook/{name}"
        assert monitor.get(path).text.startswith(name)
    unknown = monitor.get("/playbook/Nothing")
    assert unknown.status_code == 404
    assert "InputDrift" in unknown.json()["detail"]


def test_promtool_sees_every_alert_fire_and_be_silent() -> None:
    promtool = find(IMAGE).with_name("promtool")
    tested = yaml.safe_load((HERE / "rules_test.yml").read_text("utf-8"))["tests"]
    cases = [case for test in tested for case in test["alert_rule_test"]]
    groups = yaml.safe_load((HERE / "rules.yml").read_text("utf-8"))["groups"]
    names = {rule["alert"] for group in groups for rule in group["rules"]}
    for is_firing in (True, False):
        found = {case["alertname"] for case in cases if bool(case["exp_alerts"]) is is_firing}
        assert found == names
    subprocess.run([promtool, "test", "rules", "rules_test.yml"], cwd=HERE, check=True)


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    config = (HERE / "prometheus.yml").read_text("utf-8")
    path = tmp_path / "prometheus.yml"
    path.write_text(config.replace("/etc/prometheus/rules.yml", str(HERE / "rules.yml")), "utf-8")
    subprocess.run([find(IMAGE).with_name("promtool"), "check", "config", path], check=True)


# --- the API and the job --------------------------------------------------------------------------


def test_metrics_count_predictions_of_callers_and_every_refusal(
    tmp_path: Path, models: Path
) -> None:
    env = {"MODEL_DIRECTORY": str(models), "OUTLIER_MODEL_DIRECTORY": str(models / "outlier")}
    with (
        Server(tmp_path, env) as api,
        httpx.Client(base_url=api.url, timeout=60) as client,
    ):
        client.post("/predict", json={"data": [[5.1, 3.5, 1.4, 0.2], [30.0] * 4]})
        client.get("/predict/test")
        client.post("/predict", json={"data": []})
        client.get("/nothing")
        client.post("/predict", content=b" " * 200_000)
        found = client.get("/metrics").text.splitlines()
    for line in (
        'http_requests_total{path="/predict",status="200"} 1.0',
        'http_requests_total{path="/predict",status="422"} 1.0',
        'http_requests_total{path="/predict/test",status="200"} 1.0',
        'http_requests_total{path="",status="404"} 1.0',
        'http_requests_total{path="",status="413"} 1.0',
        "outliers_total 1.0",
        "prediction_seconds_count 1.0",
    ):
        assert line in found
    rows = [float(line.split()[1]) for line in found if line.startswith("predictions_total{")]
    assert sum(rows) == 2
    assert any(line.startswith("model_info{") and line.endswith("1.0") for line in found)


# --- all of it ------------------------------------------------------------------------------------


@pytest.fixture
def pattern(server: Database, models: Path, tmp_path: Path) -> Iterator[Pattern]:
    server.value("DROP TABLE IF EXISTS baselines, windows, incidents")
    server.value("TRUNCATE records, shipped")
    with ExitStack() as stack:
        yield Pattern(stack, server, models, tmp_path)
    with server.engine.begin() as connection:
        metadata.create_all(connection)


@pytest.mark.slow
def test_every_fault_is_named_once_and_resolved(pattern: Pattern) -> None:
    for fault in ("scale", "silence"):
        heard = listen(pattern, fault)
        assert (heard.alerts, heard.is_resolved) == (1, True), fault
        assert heard.windows <= 3, fault
    dashboard = json.loads((HERE / "dashboard.json").read_bytes())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(queries) == 8
    for query in queries:
        assert pattern.prometheus.query(query), query
    unknown = httpx.post(f"{pattern.job.url}/fault/nothing")
    assert unknown.status_code == 404
    assert all(fault in unknown.json()["detail"] for fault in CHECKS)
    # A log that stands still is not a quiet day.
    pattern.shipper.stop()
    wait_until(lambda: "MonitorStale" in pattern.prometheus.firing(), "MonitorStale", 90)


@pytest.mark.slow
def test_without_the_monitor_only_faults_of_the_traffic_are_named(pattern: Pattern) -> None:
    wait_until(pattern.is_quiet, "no alert", 120)
    named = named_without_monitor(pattern, seconds=30, faults=["scale", "silence"])
    assert named == {"silence"}
    assert ALERTS["silence"] in pattern.prometheus.firing()
