"""online_ab_pattern: real versions behind a real Envoy, the switch, PostgreSQL and the report."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
import yaml
from scipy.stats import chi2_contingency, chisquare
from sqlalchemy import text

from chapter6_operation_management.online_ab_pattern.app.decide import (
    MISMATCH,
    Pair,
    always_valid,
    effect,
    ratio_mismatch,
    sample_size,
)
from chapter6_operation_management.online_ab_pattern.app.experiment import Experiment
from chapter6_operation_management.online_ab_pattern.app.judge import Report, judge
from chapter6_operation_management.online_ab_pattern.app.outcomes import Counts
from chapter6_operation_management.online_ab_pattern.app.runs import begin, last, stop
from chapter6_operation_management.online_ab_pattern.app.settings import Settings
from chapter6_operation_management.online_ab_pattern.app.switch import harm
from chapter6_operation_management.online_ab_pattern.app.written import WrittenError, read
from chapter6_operation_management.online_ab_pattern.measure.baselines import without_stickiness
from chapter6_operation_management.online_ab_pattern.measure.bench import (
    SHIPPED,
    Bench,
    ask,
    modes,
    raise_to,
    users,
)
from chapter6_operation_management.online_ab_pattern.measure.counts import (
    count_harm,
    count_harmed,
    count_users,
)
from chapter6_operation_management.online_ab_pattern.measure.processes import (
    BODY,
    HERE,
    PACKAGE,
    ROOT,
    Database,
    Reporter,
    Server,
    Shipper,
)
from chapter6_operation_management.online_ab_pattern.measure.simulate import (
    count_experiments,
    count_splits,
    measure_watching,
)
from chapter6_operation_management.online_ab_pattern.train.__main__ import write
from tools.measure.results import load as load_results
from tools.measure.server import wait_until
from tools.mesh.proxy import Proxy, shipped, translated

TEXT = SHIPPED.read_text("utf-8")
EXPERIMENT = read(SHIPPED, Experiment)[0]
ID = "0" * 32


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    write(directory)
    return directory


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with Database() as running:
        yield running


@pytest.fixture(scope="module")
def bench(
    database: Database, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(database, tmp_path_factory.mktemp("bench"), models, stack)


@pytest.fixture(scope="module")
def mesh(bench: Bench) -> Iterator[Proxy]:
    with bench.mesh(shipped(HERE)) as running:
        yield running


@pytest.fixture(scope="module")
def drawing(bench: Bench) -> Iterator[Proxy]:
    """A mesh that draws a version for each request."""
    with bench.mesh(translated(HERE, without_stickiness)) as running:
        yield running


@pytest.fixture
def client(mesh: Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=mesh.url, timeout=60, trust_env=False) as client:
        yield client


# Statistics --------------------------------------------------------------------------------------

SIZES = [
    (0.9, 0.05, 0.5, (434, 434)),
    (0.9, 0.05, 0.1, (2_348, 261)),
    (0.1, 0.02, 0.5, (3_841, 3_841)),
    (0.1, 0.02, 0.1, (18_690, 2_077)),
    (0.8, 0.15, 0.1, (414, 46)),
]


@pytest.mark.parametrize(("baseline", "least_effect", "share", "users"), SIZES)
def test_a_size_is_that_of_the_pooled_test(
    baseline: float, least_effect: float, share: float, users: tuple[int, int]
) -> None:
    assert sample_size(baseline, least_effect, share, alpha=0.05, power=0.8) == users


def power_at(planned: tuple[int, int]) -> float:
    """The share of 20,000 simulated experiments in which .95 differs from .90."""
    chance = np.random.default_rng(0)
    successes = (
        chance.binomial(planned[0], 0.9, 20_000),
        chance.binomial(planned[1], 0.95, 20_000),
    )
    found = effect(successes, planned, planned, 0.05)
    assert found is not None
    return float((found.p_value < 0.05).mean())


def test_a_planned_size_has_its_power_and_the_one_that_is_often_quoted_has_not() -> None:
    assert power_at((434, 434)) == pytest.approx(0.80, abs=0.015)
    assert power_at((2_348, 261)) == pytest.approx(0.80, abs=0.03)
    assert power_at((1_624, 180)) == pytest.approx(0.62, abs=0.02)


def test_a_split_is_judged_by_chi_square_once_five_users_are_expected() -> None:
    assert ratio_mismatch((880, 120), (90, 10)) == pytest.approx(
        chisquare([880, 120], [900, 100]).pvalue
    )
    assert ratio_mismatch((540, 60), (90, 10)) == 1
    assert ratio_mismatch((0, 49), (90, 10)) == 1 == ratio_mismatch((0, 0), (90, 10))
    assert ratio_mismatch((0, 50), (90, 10)) < MISMATCH
    assert ratio_mismatch((500, 500), (50, 50)) == 1


def test_the_test_is_that_of_the_textbook_and_so_is_its_interval() -> None:
    # Newcombe, 1998, table II: 56 of 70 and 48 of 80.
    found = effect((48, 56), (80, 70), (80, 70), 0.05)
    assert found is not None
    assert (found.difference, found.low, found.high) == pytest.approx(
        (0.2, 0.0524, 0.3339), abs=5e-5
    )
    table = chi2_contingency([[48, 32], [56, 14]], correction=False)
    assert found.p_value == pytest.approx(table.pvalue)


@pytest.mark.parametrize("users", [(79, 70), (80, 69), (81, 70), (0, 0)])
def test_there_is_no_test_at_another_size(users: tuple[int, int]) -> None:
    assert effect((0, 0), users, (80, 70), 0.05) is None


@pytest.mark.parametrize(
    ("successes", "p_value"), [((0, 0), 1), ((80, 70), 1), ((0, 70), 0), ((80, 0), 0)]
)
def test_what_all_users_do_alike_is_no_error(successes: tuple[int, int], p_value: int) -> None:
    found = effect(successes, (80, 70), (80, 70), 0.05)
    assert found is not None
    assert found.p_value == pytest.approx(p_value)
    assert -1 <= found.low <= found.difference <= found.high <= 1
    watched = always_valid(successes, (80, 70), 150, 0.05)
    assert -1 <= watched.low <= found.difference <= watched.high <= 1


def test_an_interval_that_may_be_watched_begins_with_everything_and_is_wider_in_the_end() -> None:
    assert always_valid((0, 0), (0, 0), 868, 0.05) == (-1, 1)
    assert always_valid((50, 0), (50, 0), 868, 0.05) == (-1, 1)
    # One failure is no proof, however good the other version is.
    assert always_valid((0, 1), (100_000, 1), 868, 0.05).low < 0
    fixed = effect((391, 412), (434, 434), (434, 434), 0.05)
    watched = always_valid((391, 412), (434, 434), 868, 0.05)
    assert fixed is not None
    assert fixed.low > 0 > watched.low
    widths = [
        np.ptp(always_valid((0, 0), (n, n), planned, 0.05))
        for n, planned in ((434, 868), (434, 87))
    ]
    assert widths[0] < widths[1]


def test_verdicts_are_as_wrong_as_planned_and_wronger_without_the_plan() -> None:
    splits, of_splits = count_splits()
    assert splits["fair_splits_flagged"] <= 6 < of_splits["fair_splits_flagged"]
    assert splits["biased_splits_flagged"] >= 1_500 > of_splits["biased_splits_flagged"]
    assert splits["strongly_biased_splits_flagged"] == 2_000
    counts, control = count_experiments()
    assert counts["effects_found"] >= 800 > control["effects_found"]
    assert counts["aa_flagged"] <= 65 < control["aa_flagged"]
    assert counts["aa_flagged_while_watching"] <= 50 < control["aa_flagged_while_watching"]
    figures = measure_watching()
    assert figures["power_while_watching"] < 0.55 < 0.75 < figures["power_at_the_planned_size"]
    assert figures["harm_found_at_share_of_n"] <= 0.3


def test_a_failing_version_that_fails_like_the_old_one_is_not_taken_out() -> None:
    """Of 200 simulated services with errors in both versions, the interval blames few."""
    chance = np.random.default_rng(0)
    looks = np.arange(1, 101)[:, None]
    blamed = 0
    for share in (0.001, 0.05):
        failed = [chance.binomial(size, share, (100, 200)).cumsum(axis=0) for size in (90, 10)]
        interval = always_valid((failed[0], failed[1]), (90 * looks, 10 * looks), 460, 0.05)
        blamed += int((interval.low > EXPERIMENT.harm_error_share).any(axis=0).sum())
    assert blamed <= 2


# The experiment ----------------------------------------------------------------------------------


def changed(key: str, value: str) -> str:
    lines = TEXT.splitlines()
    return "\n".join(f"{key}: {value}" if line.startswith(f"{key}:") else line for line in lines)


BAD_EXPERIMENTS = {
    "no name": (changed("name", '""'), "name: String should match"),
    "a salt that is no name": (changed("name", "'a\\1'"), "name: String should match"),
    "one arm": (changed("arms", "{a: svc, b: svc}"), "arms.a and arms.b are the same"),
    "three arms": (changed("arms", "{a: svc, b: rf, c: x}"), "arms.c: Extra"),
    "a step that is none": (changed("step", "11"), "step 11 is none of the steps"),
    "most users": (changed("steps", "[10, 90]"), "steps.1: Input should be less"),
    "steps that fall": (changed("steps", "[50, 10]"), "steps do not rise"),
    "no steps": (changed("steps", "[]"), "steps: List should have at least 1"),
    "a text": (changed("baseline", '"0.9"'), "baseline: Input should be a valid number"),
    "NaN": (changed("baseline", ".nan"), "baseline: Input should be"),
    "no effect": (changed("least_effect", "0.0"), "least_effect: Input should be greater"),
    "more than all": (changed("least_effect", "0.2"), "1 or more together"),
    "always right": (changed("power", "1.0"), "power: Input should be less"),
    "no alpha": (changed("alpha", "0.0"), "alpha: Input should be greater"),
    "for ever": (changed("event_within_seconds", ".inf"), "event_within_seconds: Input"),
    "all may fail": (changed("harm_error_share", "1.0"), "harm_error_share: Input"),
    "a key too many": (f"{TEXT}peek: true\n", "peek: Extra"),
    "a key twice": (f"{TEXT}step: 5\n", "step is there 2 times"),
    "nothing": ("", "the file: Input should be a valid dictionary"),
    "half of it": (TEXT[: TEXT.index("baseline:")], "baseline: Field required"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_EXPERIMENTS.values(), ids=BAD_EXPERIMENTS)
def test_an_experiment_out_of_bounds_is_refused_with_its_key(
    tmp_path: Path, content: str, reason: str
) -> None:
    path = tmp_path / "experiment.yml"
    path.write_text(content, "utf-8")
    with pytest.raises(WrittenError) as refused:
        read(path, Experiment)
    assert reason in str(refused.value)


def test_neither_the_switch_nor_the_report_starts_without_one(
    tmp_path: Path, database: Database
) -> None:
    path = tmp_path / "experiment.yml"
    path.write_text(changed("step", "11"), "utf-8")
    for module in ("app.switch", "uvicorn"):
        command = [sys.executable, "-m", f"{PACKAGE}.{module}" if "." in module else module]
        app = [f"{PACKAGE}.app.report:app", "--port", "0"] if module == "uvicorn" else []
        ended = subprocess.run(
            [*command, *app],
            cwd=ROOT,
            env={**database.variables, "EXPERIMENT_FILE": str(path), "PATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode != 0
        assert "step 11 is none of the steps" in ended.stderr, ended.stderr


# Users and requests ------------------------------------------------------------------------------


def test_a_user_stays_and_a_raise_moves_users_only_to_the_new_version(
    bench: Bench, mesh: Proxy, drawing: Proxy
) -> None:
    kept = count_users(bench, mesh, 300)
    assert kept == {
        "users": 300,
        "users_that_changed_arm": 0,
        "moved_back_on_a_raise": 0,
        "events_unjoined": 0,
    }
    # The control: the same manifests without sticky.yml.
    assert min(count_users(bench, drawing, 300).values()) > 0


def test_the_split_is_as_written_and_the_answers_say_which_version_they_are_of(
    bench: Bench, mesh: Proxy
) -> None:
    bench.begin()
    raise_to(mesh, EXPERIMENT.step)
    found = modes(ask(mesh, users(1_000)))
    assert set(found) == {"iris_svc", "iris_rf"}
    counts = (found.count("iris_svc"), found.count("iris_rf"))
    assert ratio_mismatch(counts, EXPERIMENT.weights) > MISMATCH
    report = bench.report()
    assert report.counts.users == counts
    assert report.counts.users_of_both == 0


def test_without_an_id_a_request_is_outside_the_experiment(
    bench: Bench, client: httpx.Client
) -> None:
    bench.begin()
    for _ in range(50):
        assert client.post("/predict", content=BODY).json()["mode"] == "iris_svc"
    report = bench.report()
    assert (report.counts.users, report.counts.requests) == ((0, 0), (50, 0))
    event = {"job_id": ID, "event_id": "1", "event": "accepted", "value": "yes"}
    answer = client.post("/event", json=event)
    assert answer.status_code == 422
    assert "x-user-id" in answer.json()["detail"]


@pytest.mark.parametrize(
    "given",
    [[""], ["x" * 129], ["a b"], ["a\tb"], ["müller"], ["a", "b"], ["x" * 60_000]],
    ids=["empty", "long", "a space", "a control character", "no ASCII", "twice", "huge"],
)
def test_an_id_that_is_none_is_refused_by_both(bench: Bench, mesh: Proxy, given: list[str]) -> None:
    headers = [(b"x-user-id", value.encode()) for value in given]
    for url in (mesh.url, bench.svc.url, bench.rf.url):
        answer = httpx.post(f"{url}/predict", content=BODY, headers=headers, timeout=60)
        assert answer.status_code in ({422, 431} if len(given[0]) > 1_000 else {422}), url


def test_what_http_forbids_in_a_header_never_gets_a_version(mesh: Proxy) -> None:
    url = httpx.URL(mesh.url)
    with socket.create_connection((url.host, url.port or 80), 30) as raw:
        raw.sendall(b"GET /predict/test HTTP/1.1\r\nhost: a\r\nx-user-id: a\x01b\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_the_longest_id_is_a_user(bench: Bench, mesh: Proxy) -> None:
    user = uuid4().hex + "~" * 96
    assert len(user) == 128
    assert modes(ask(mesh, [user]))[0].startswith("iris_")


def test_users_are_stored_as_a_salted_hash_that_is_the_same_for_both_versions(
    bench: Bench, mesh: Proxy, tmp_path: Path
) -> None:
    user = f"ada-{uuid4()}"
    request = {"content": BODY, "headers": {"x-user-id": user}, "timeout": 60}
    env = bench.env | {"ARM": "svc", "USER_SALT": "another salt"}
    with Server(tmp_path, env) as other:
        for server in (bench.svc, bench.rf, other):
            httpx.post(f"{server.url}/predict", **request).raise_for_status()  # type: ignore[arg-type]
    lines = [
        line
        for parent in (bench.parent, tmp_path)
        for path in parent.rglob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert not [line for line in lines if user in line]
    ends: dict[str, list[str]] = {}
    for directory in (bench.svc.directory, bench.rf.directory, tmp_path):
        (path,) = [*directory.rglob("*.jsonl")][-1:]
        ends[str(directory)] = json.loads(path.read_text().splitlines()[-1])["user"]
    svc, rf, salted = ends.values()
    assert svc == rf != salted
    assert len(svc) == 32


# Joining, from planted records -------------------------------------------------------------------


class Planted:
    """An experiment that began an hour ago, and records of which each test says what they are."""

    positions = count()

    def __init__(self, database: Database, directory: Path) -> None:
        self.database = database
        self.file = directory / "experiment.yml"
        self.settings = database.settings.model_copy(
            update={"settle_seconds": 0.0, "experiment_file": self.file}
        )
        self.rows: list[dict[str, Any]] = []
        self.write(TEXT)

    def write(self, text: str, seconds_ago: int = 3_600) -> None:
        self.file.write_text(f"{text}\n# {uuid4()}\n", "utf-8")
        with self.database.engine.begin() as connection:
            number = begin(connection, read(self.file, Experiment)[1]).number
        self.database.value(
            "UPDATE runs SET began = began - make_interval(secs => :ago) WHERE number = :number",
            ago=seconds_ago,
            number=number,
        )

    def add(self, kind: str, arm: str, user: str, job_id: str, at: float, **fields: Any) -> None:
        body = {"arm": arm, "user": user, "model": f"1-{arm}", **fields}
        self.rows.append({"kind": kind, "id": job_id, "after": at, "body": json.dumps(body)})

    def predict(self, arm: str, user: str, job_id: str | None = None, at: float = 1) -> str:
        job_id = job_id or uuid4().hex
        self.add("prediction", arm, user, job_id, at)
        return job_id

    def tell(
        self, arm: str, user: str, job_id: str, at: float = 2, event_id: str = "1", **fields: str
    ) -> None:
        event = {"event": "accepted", "value": "yes"} | fields
        self.add("event", arm, user, job_id, at, event_id=event_id, **event)

    def many(self, arm: str, size: int, successes: int, at: float = 1) -> None:
        """Adds users, of whom some are successes."""
        for number in range(size):
            user = uuid4().hex
            job_id = self.predict(arm, user, at=at)
            if number < successes:
                self.tell(arm, user, job_id, at=at + 1)

    def report(self) -> Report:
        insert = """INSERT INTO records (day, segment, position, kind, id, at, body)
        SELECT (now() AT TIME ZONE 'UTC')::date, 'planted', :position, :kind, :id,
            (SELECT began FROM runs ORDER BY number DESC LIMIT 1) + make_interval(secs => :after),
            CAST(:body AS jsonb)"""
        rows = [row | {"position": next(self.positions)} for row in self.rows]
        self.rows = []
        with self.database.engine.begin() as connection:
            if rows:
                connection.execute(text(insert), rows)
            return judge(connection, self.settings)

    def stop(self, reason: str) -> None:
        with self.database.engine.begin() as connection:
            run = last(connection)
            assert run is not None
            stop(connection, run, reason)


@pytest.fixture
def planted(database: Database, tmp_path: Path) -> Iterator[Planted]:
    database.value("DELETE FROM records")
    yield Planted(database, tmp_path)
    database.value("DELETE FROM records")


EVENTS = ("joined", "waiting", "refused", "twice", "of_earlier")


def events(counts: Counts) -> dict[str, int]:
    found = {name: getattr(counts, f"events_{name}") for name in EVENTS}
    return {name: value for name, value in found.items() if value}


def test_an_event_that_comes_before_its_prediction_waits_for_it(planted: Planted) -> None:
    job_id = uuid4().hex
    planted.tell("svc", "a", job_id, at=1)
    assert events(planted.report().counts) == {"waiting": 1}
    planted.predict("svc", "a", job_id, at=2)
    counts = planted.report().counts
    assert events(counts) == {"joined": 1}
    assert (counts.watched, counts.watched_successes) == ((1, 0), (1, 0))


@pytest.mark.parametrize(("arm", "user"), [("rf", "a"), ("svc", "b")], ids=["version", "user"])
def test_an_event_of_another_version_or_user_is_refused_and_counted(
    planted: Planted, arm: str, user: str
) -> None:
    job_id = planted.predict("svc", "a")
    planted.tell(arm, user, job_id)
    counts = planted.report().counts
    assert events(counts) == {"refused": 1}
    assert counts.watched_successes == (0, 0)


def test_an_event_that_comes_twice_counts_once(planted: Planted) -> None:
    job_id = planted.predict("rf", "a")
    for at in (2, 3, 4):
        planted.tell("rf", "a", job_id, at=at)
    planted.tell("rf", "a", job_id, event_id="2")
    counts = planted.report().counts
    assert events(counts) == {"joined": 2, "twice": 2}
    assert (counts.watched, counts.watched_successes) == ((0, 1), (0, 1))


def test_an_event_of_another_name_or_too_late_is_no_success(planted: Planted) -> None:
    planted.tell("svc", "a", planted.predict("svc", "a"), event="returned")
    planted.tell(
        "svc", "b", planted.predict("svc", "b"), at=1 + EXPERIMENT.event_within_seconds + 1
    )
    planted.tell("svc", "c", planted.predict("svc", "c"), at=1 + EXPERIMENT.event_within_seconds)
    # The time begins with the first answer.
    planted.predict("svc", "d")
    planted.tell("svc", "d", planted.predict("svc", "d", at=60), at=61)
    counts = planted.report().counts
    assert events(counts) == {"joined": 3}
    assert (counts.watched, counts.watched_successes) == ((4, 0), (1, 0))


def test_a_user_counts_once_the_time_for_the_event_is_over(planted: Planted) -> None:
    planted.predict("svc", "a")
    planted.predict("svc", "b", at=3_600)
    planted.settings.settle_seconds = 60
    counts = planted.report().counts
    assert (counts.users, counts.watched) == ((2, 0), (1, 0))


def test_a_repeated_id_of_two_users_is_two_predictions(planted: Planted) -> None:
    for user in ("a", "b"):
        planted.predict("svc", user, ID)
        planted.tell("svc", user, ID, event_id=user)
    assert events(planted.report().counts) == {"joined": 2}


def test_a_change_of_the_experiment_begins_another_and_nothing_is_merged(planted: Planted) -> None:
    job_id = planted.predict("svc", "a", at=1)
    assert planted.report().counts.users == (1, 0)
    first = planted.file.read_bytes()
    planted.write(changed("step", "25"), seconds_ago=60)
    planted.tell("svc", "a", job_id)
    planted.predict("rf", "a", at=2)
    counts = planted.report().counts
    assert (counts.users, counts.users_of_both) == ((0, 1), 0)
    assert events(counts) == {"of_earlier": 1}
    # What is as it was before is another one, too.
    planted.file.write_bytes(first)
    assert planted.report().reasons == ["the experiment is not running yet; the switch begins it"]
    with planted.database.engine.begin() as connection:
        begin(connection, read(planted.file, Experiment)[1])
    assert planted.report().counts.users == (0, 0)


def test_two_that_begin_an_experiment_at_once_begin_one(planted: Planted) -> None:
    planted.file.write_text(f"{TEXT}# {uuid4()}\n", "utf-8")
    digest = read(planted.file, Experiment)[1]

    def start(_: int) -> int:
        with planted.database.engine.begin() as connection:
            return begin(connection, digest).number

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(start, range(8)))) == 1


# Verdicts ----------------------------------------------------------------------------------------


def test_there_is_no_verdict_before_the_planned_size(planted: Planted) -> None:
    planted.many("svc", 414, 331)
    planted.many("rf", 45, 45)
    report = planted.report()
    assert report.verdict == "wait"
    assert report.reasons == ["414 of 414 users of svc and 45 of 46 users of rf"]
    assert report.p_value is None
    assert report.watched_low is not None
    assert report.watched_low > -1


@pytest.mark.parametrize(
    ("successes", "verdict", "reason"),
    [(46, "go", "rf is better: +0.200"), (25, "no-go", "rf is worse: -0.256"),
     (39, "no-go", "no effect beyond chance: +0.048")],
)  # fmt: skip
def test_the_verdict_is_that_of_the_test(
    planted: Planted, successes: int, verdict: str, reason: str
) -> None:
    planted.many("svc", 414, 331)
    planted.many("rf", 46, successes)
    report = planted.report()
    assert report.verdict == verdict
    assert report.reasons[0].startswith(reason)
    # Those who come later change nothing: the first ones were planned.
    planted.many("svc", 90, 90, at=600)
    planted.many("rf", 10, 0, at=600)
    later = planted.report()
    assert (later.verdict, later.reasons) == (report.verdict, report.reasons)
    assert later.counts.users == (504, 56)


def test_a_split_that_is_not_as_written_is_void(planted: Planted) -> None:
    planted.many("svc", 414, 331)
    planted.many("rf", 276, 276)
    report = planted.report()
    assert report.verdict == "void"
    (reason,) = report.reasons
    assert reason.startswith("ratio mismatch: 414 users of svc and 276 of rf are not 90 to 10")


def test_users_of_both_versions_count_nowhere_and_make_it_void(planted: Planted) -> None:
    planted.predict("svc", "a")
    planted.predict("rf", "a")
    planted.predict("svc", "b")
    report = planted.report()
    assert (report.verdict, report.counts.users) == ("void", (1, 0))
    assert report.reasons == ["1 users have had answers of both versions"]


def test_the_same_model_twice_or_another_one_under_way_is_void(planted: Planted) -> None:
    planted.add("prediction", "svc", "a", ID, 1, model="1-same")
    planted.add("prediction", "rf", "b", ID, 1, model="1-same")
    assert planted.report().reasons == ["both versions have the model 1-same"]
    planted.add("prediction", "rf", "c", ID, 1, model="2-next")
    reasons = planted.report().reasons
    assert reasons[0] == "rf has had 2 models: 1-same, 2-next"


def test_a_stopped_experiment_has_no_other_verdict(planted: Planted) -> None:
    planted.many("svc", 414, 331)
    planted.many("rf", 46, 46)
    planted.predict("svc", "a")
    planted.predict("rf", "a")
    planted.stop("it fails")
    report = planted.report()
    assert (report.verdict, report.reasons) == ("stopped", ["it fails"])


def test_a_file_that_is_wrong_is_void(planted: Planted) -> None:
    planted.file.write_text("", "utf-8")
    report = planted.report()
    assert report.verdict == "void"
    assert "the file: Input should be a valid dictionary" in report.reasons[0]


# The switch --------------------------------------------------------------------------------------

WELL = {"requests": (9_000, 1_000), "watched": (414, 46), "watched_successes": (331, 38)}
NOTHING = ((0, 0), (0, 0))
HARMS: dict[str, tuple[dict[str, Pair], tuple[Pair, Pair], str | None]] = {
    "nothing": (dict.fromkeys(WELL, (0, 0)), NOTHING, None),
    "all is well": ({}, NOTHING, None),
    "one failure": ({"failures": (0, 1), "recent_requests": (9, 1), "recent_failures": (0, 1)},
                    ((0, 1), (9, 1)), None),
    "both fail": ({"failures": (900, 100)}, ((900, 100), (9_000, 1_000)), None),
    "the old one fails": ({"failures": (9_000, 0)}, ((9_000, 0), (9_000, 1_000)), None),
    "within the bound": ({"failures": (0, 20)}, ((0, 20), (9_000, 1_000)), None),
    "slowly": ({"failures": (0, 90)}, NOTHING, "90 of 1000 requests to rf have failed"),
    "after a long time": (
        {"recent_requests": (90, 10), "recent_failures": (0, 10)}, NOTHING,
        "10 of 10 requests to rf have failed, and 0 of 90 to svc, as the log says of the last"),
    "dead": ({}, ((0, 10), (90, 10)),
             "10 of 10 requests to rf have failed, and 0 of 90 to svc, as the mesh says"),
    "worse": ({"watched_successes": (331, 18)}, NOTHING,
              "18 of 46 users of rf are successes, and 331 of 414 of svc"),
    "a little worse": ({"watched_successes": (331, 34)}, NOTHING, None),
    "better": ({"watched_successes": (331, 46)}, NOTHING, None),
}  # fmt: skip


@pytest.mark.parametrize(("change", "seen", "reason"), HARMS.values(), ids=HARMS)
def test_harm_is_what_is_beyond_chance_and_the_bound(
    change: dict[str, Pair], seen: tuple[Pair, Pair], reason: str | None
) -> None:
    found = harm(EXPERIMENT, Counts.model_validate(WELL | change), seen)
    assert found == reason if reason is None else str(found).startswith(reason)


def test_a_failing_version_is_taken_out_and_nobody_is_harmed_after_that(
    bench: Bench, mesh: Proxy, drawing: Proxy
) -> None:
    found = count_harm(bench, mesh)
    assert found.requests > 0 == found.after_the_switch
    assert "requests to rf have failed" in found.reason
    report = bench.report()
    assert (report.verdict, report.reasons) == ("stopped", [found.reason])
    # The control: nobody switches.
    bench.plant()
    assert count_harmed(drawing, 200) > 0
    bench.plant()


def shares(mesh: Proxy) -> int:
    """How many of 100 new users get the new version."""
    return modes(ask(mesh, users(100))).count("iris_rf")


def test_a_stopped_version_stays_off_until_told_and_a_change_by_hand_is_undone(
    bench: Bench, mesh: Proxy
) -> None:
    bench.begin()
    run = bench.run()
    assert run is not None
    with bench.database.engine.begin() as connection:
        stop(connection, run, "by a test")
    switch = bench.switch(mesh)
    with switch:
        wait_until(lambda: shares(mesh) == 0, "the weight to be 0", 60)
        raise_to(mesh, 50)
        wait_until(lambda: shares(mesh) == 0, "the weight to be 0 again", 60)
        # A file that is wrong tells nothing.
        bench.settings.experiment_file.write_text("step: 50", "utf-8")
        wait_until(lambda: "the last experiment goes on" in switch.log.read_text(), "a word", 60)
        assert shares(mesh) == 0
        bench.write()
        wait_until(lambda: shares(mesh) > 0, "the new version to be back", 60)
        # It survives that the tables or the database are not there.
        bench.database.value("ALTER TABLE records RENAME TO hidden")
        wait_until(lambda: '"records" does not exist' in switch.log.read_text(), "a word", 60)
        bench.database.value("ALTER TABLE hidden RENAME TO records")
        bench.database.kill()
        wait_until(lambda: "PostgreSQL does not answer" in switch.log.read_text(), "a word", 60)
        bench.database.start()
        bench.write()
        number = bench.run()
        wait_until(lambda: bench.run() != number, "the next run", 60)


def test_a_dead_version_is_known_to_the_mesh_alone(bench: Bench, mesh: Proxy) -> None:
    bench.write()
    with bench.switch(mesh):
        bench.rf.kill()
        try:
            wait_until(lambda: count_harmed(mesh, 50) == 0, "the new version to be out", 60)
        finally:
            bench.rf.start()
    run = bench.run()
    assert run is not None
    assert str(run.reason).startswith("the weight of rf is 0: ")
    assert "as the mesh says" in str(run.reason)


def is_stopped(bench: Bench) -> bool:
    run = bench.run()
    return run is not None and run.stopped is not None


def test_where_it_may_not_act_the_switch_says_what_it_would_do(
    bench: Bench, mesh: Proxy, tmp_path: Path
) -> None:
    raise_to(mesh, 50)
    bench.write()
    bench.plant()
    logs = bench.env | {"LOG_DIRECTORY": str(bench.parent)}
    with bench.switch(mesh, ACT="false") as switch, Shipper(tmp_path, logs):
        wait_until(lambda: count_harmed(mesh, 20) >= 0 and is_stopped(bench), "a stop", 60)
        said = switch.log.read_text()
    assert "the weight of rf has to be set to 0: " in said
    assert "as the log says" in said
    # It has changed nothing.
    assert count_harmed(mesh, 100) > 0
    assert bench.report().verdict == "stopped"
    bench.plant()
    raise_to(mesh, EXPERIMENT.step)


# Programs ----------------------------------------------------------------------------------------


def simulate(mesh: Proxy, size: int) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", f"{PACKAGE}.app.users"],
        cwd=ROOT,
        env={"MESH_URL": mesh.url, "SIMULATED_USERS": str(size), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_simulated_users_are_called_so_and_say_what_they_have_got(
    bench: Bench, mesh: Proxy, drawing: Proxy
) -> None:
    bench.begin()
    raise_to(mesh, EXPERIMENT.step)
    said = simulate(mesh, 200)
    assert said.startswith("200 simulated users: ")
    assert ", 0 both, 0 without an answer" in said
    report = bench.report()
    assert sum(report.counts.users) == 200
    assert 100 < report.counts.events_joined < 200
    assert ", 0 both" not in simulate(drawing, 200)


def test_the_report_and_its_page_say_the_same(
    bench: Bench, mesh: Proxy, planted: Planted, tmp_path: Path
) -> None:
    planted.add("prediction", "svc", "a", ID, 1, model="<script>alert(1)</script>")
    planted.add("prediction", "rf", "b", uuid4().hex, 1)
    planted.report()
    env = bench.env | {"EXPERIMENT_FILE": str(planted.file), "SETTLE_SECONDS": "0"}
    with Reporter(tmp_path, env) as server, httpx.Client(base_url=server.url, timeout=60) as asking:
        report, page = asking.get("/report").json(), asking.get("/")
    assert report["verdict"] == "wait"
    for shown in (report["reasons"][0], EXPERIMENT.name, "1 of 414", "&lt;script&gt;"):
        assert shown in page.text
    assert "<script" not in page.text


# Manifests and measurement -----------------------------------------------------------------------


def manifest(name: str) -> Any:
    return yaml.safe_load((HERE / f"manifests/{name}.yml").read_text("utf-8"))


def test_the_manifests_say_what_the_experiment_says() -> None:
    (split, outside) = manifest("virtual_service")["spec"]["http"]
    weights = {each["destination"]["subset"]: each["weight"] for each in split["route"]}
    assert weights == dict(
        zip((EXPERIMENT.arms.a, EXPERIMENT.arms.b), EXPERIMENT.weights, strict=True)
    )
    assert split["match"] == [{"headers": {"x-user-id": {}}}]
    assert [each["destination"]["subset"] for each in outside["route"]] == ["svc"]
    (patch,) = manifest("sticky")["spec"]["configPatches"]
    (policy,) = patch["patch"]["value"]["route"]["hash_policy"]
    rewrite = policy["header"]["regex_rewrite"]
    assert rewrite["substitution"] == f"{EXPERIMENT.name}:\\1"
    assert manifest("config_map")["data"] == {"experiment.yml": TEXT}


def test_no_pod_belongs_to_both_and_in_a_cluster_the_switch_does_not_act() -> None:
    selectors = []
    for version in ("svc", "rf"):
        deployment, scaler = manifest(f"{version}_deployment"), manifest(f"{version}_hpa")
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        selectors.append(deployment["spec"]["selector"]["matchLabels"])
    assert selectors == [{"app": "iris", "version": "svc"}, {"app": "iris", "version": "rf"}]
    for name in ("switch", "report"):
        pod = manifest(f"{name}_deployment")["spec"]["template"]["spec"]
        variables = {each["name"]: each.get("value") for each in pod["containers"][0]["env"]}
        (mount,) = [
            each for each in pod["containers"][0]["volumeMounts"] if "tmp" not in each["name"]
        ]
        assert "subPath" not in mount
        assert variables["EXPERIMENT_FILE"] == f"{mount['mountPath']}/experiment.yml"
        assert variables.get("ACT") == {"switch": "false"}.get(name)


def test_the_defaults_are_those_of_a_machine_alone() -> None:
    settings = Settings()
    assert settings.act
    assert settings.experiment_file == SHIPPED


@pytest.mark.budget("measure --quick")
def test_the_measurement_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "measure")], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.holds
    for name, value in results.control.items():
        assert value != results.counts[name], name
