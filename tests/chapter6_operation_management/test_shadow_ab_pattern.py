"""shadow_ab_pattern: real versions behind a real Envoy, their log, PostgreSQL and the report."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from chapter6_operation_management.shadow_ab_pattern.app.arm import ArmLog
from chapter6_operation_management.shadow_ab_pattern.app.compare import Pairs, compare
from chapter6_operation_management.shadow_ab_pattern.app.judge import Report, judge
from chapter6_operation_management.shadow_ab_pattern.app.rule import Rule
from chapter6_operation_management.shadow_ab_pattern.app.settings import Settings
from chapter6_operation_management.shadow_ab_pattern.app.written import WrittenError, read
from chapter6_operation_management.shadow_ab_pattern.measure.bench import (
    FAILED,
    NOT_SENT,
    PLACES,
    Bench,
    bodies,
    counted,
    send,
    send_at_once,
    wait_until_copied,
)
from chapter6_operation_management.shadow_ab_pattern.measure.counts import (
    BAD,
    FEW,
    NO_RULE,
    count_faulty,
    count_good,
    count_waiting,
    swap,
)
from chapter6_operation_management.shadow_ab_pattern.measure.processes import (
    BODY,
    HERE,
    PACKAGE,
    ROOT,
    Database,
    Reporter,
    Server,
    Shipper,
)
from chapter6_operation_management.shadow_ab_pattern.train.__main__ import write
from tools.measure.results import load as load_results
from tools.measure.server import ServerError, wait_until
from tools.measure.servers import guarded, run_uvicorn
from tools.mesh.proxy import Proxy, shipped, translated

RULE_FILE = HERE / "rule/rule.yml"
RULE = read(RULE_FILE, Rule)[0]
UUID = "6f9619ff-8b86-d011-b42d-00cf4fc964ff"
ROW = json.loads(BODY)["data"]


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
        bench = Bench(database, tmp_path_factory.mktemp("bench"), models, stack)
        bench.report()
        yield bench


@pytest.fixture(scope="module")
def mesh(bench: Bench) -> Iterator[Proxy]:
    with bench.mesh(shipped(HERE)) as running:
        yield running


@pytest.fixture
def client(mesh: Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=mesh.url, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as exits:
        yield exits


def records_of(bench: Bench, job_id: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the records with an ID by version."""
    bench.database.ship(bench.parent)
    query = f"SELECT body FROM records WHERE id = '{job_id}' ORDER BY at"  # noqa: S608
    found: dict[str, list[dict[str, Any]]] = {"svc": [], "rf": []}
    for row in bench.database.rows(query):
        found[row.body["arm"]].append(row.body)
    return found


# Mirroring ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        (None, False),
        (UUID, True),
        (UUID.upper(), False),
        ("000000", False),
        ("", False),
        (f"{UUID},{UUID}", False),
        ("x" * 5_000, False),
        ("'; DROP TABLE records; --", False),
    ],
)
def test_both_versions_log_a_request_under_the_id_that_its_caller_gets(
    bench: Bench, mesh: Proxy, client: httpx.Client, given: str | None, is_kept: bool
) -> None:
    headers = {} if given is None else {"x-request-id": given}
    answer = client.post("/predict", content=BODY, headers=headers)
    job_id = answer.json()["job_id"]
    assert answer.headers["x-job-id"] == job_id
    assert (job_id == given) == is_kept
    wait_until_copied(mesh)
    found = records_of(bench, job_id)
    (live,), (shadow,) = found["svc"], found["rf"]
    assert live["prediction"] == answer.json()["prediction"] != shadow["prediction"]
    assert live["data"] == shadow["data"] == ROW
    assert live["model"] == bench_model(bench, "svc")


def bench_model(bench: Bench, arm: str) -> str:
    query = "SELECT body ->> 'model' FROM records WHERE body ->> 'arm' = :arm ORDER BY at DESC"
    return str(bench.database.value(query, arm=arm))


def test_every_request_reaches_both_and_no_caller_hears_the_shadow(
    bench: Bench, mesh: Proxy
) -> None:
    bench.plant("good")
    counts, report = count_good(bench, mesh, 1_008)
    assert counts == {
        **dict.fromkeys(("sent", "a_calls", "b_calls", "pairs"), 1_008),
        "answers_of_b": 0,
        "good_version_go": 1,
    }
    assert report.verdict == "go"
    assert report.reasons == []
    assert sum(rows for _, _, rows in report.counts.labels) == 1_008
    same = sum(rows for live, shadow, rows in report.counts.labels if live == shadow)
    assert same == report.counts.agreeing < 1_008


def test_if_the_new_version_is_the_live_one_every_caller_hears_it(bench: Bench) -> None:
    bench.plant("swapped")
    with bench.mesh(translated(HERE, swap)) as swapped:
        assert count_good(bench, swapped, FEW)[0]["answers_of_b"] == FEW


def test_a_faulty_shadow_costs_no_caller_anything_and_every_copy_is_accounted_for(
    bench: Bench, mesh: Proxy, tmp_path: Path
) -> None:
    counts = count_faulty(bench, mesh, 100)
    assert counts["client_errors"] == counts["mirrored_unaccounted"] == 0
    assert counts["not_arrived"] >= 100
    # The control waits for the shadow.
    assert count_waiting(bench, tmp_path / "waiting") == FEW


def test_a_late_shadow_holds_no_more_copies_than_the_manifest_says(
    bench: Bench, mesh: Proxy
) -> None:
    bench.plant("late-held")
    dropped, failed = counted(mesh, NOT_SENT), counted(mesh, FAILED)
    run = send_at_once(mesh.url, bodies(200), "/predict", 60, connections=8)
    wait_until_copied(mesh)
    dropped = counted(mesh, NOT_SENT) - dropped
    assert run.statuses == {200: 200}
    assert dropped > 0
    assert bench.report().counts.pairs == 200 - dropped
    assert counted(mesh, FAILED) == failed
    rule = yaml.safe_load((HERE / "manifests/destination_rule.yml").read_text("utf-8"))
    (shadow,) = [each for each in rule["spec"]["subsets"] if each["name"] == "rf"]
    limits = shadow["trafficPolicy"]["connectionPool"]["http"]
    assert limits == {"http2MaxRequests": PLACES, "http1MaxPendingRequests": PLACES}


def test_a_killed_shadow_is_unpaired_and_nobody_else_notices(
    bench: Bench, mesh: Proxy, client: httpx.Client
) -> None:
    bench.plant("killed")
    send(mesh, bodies(10))
    bench.shadow.kill()
    try:
        answers = [client.post("/predict", content=BODY) for _ in range(990)]
    finally:
        bench.shadow.start()
    assert {answer.status_code for answer in answers} == {200}
    report = bench.report()
    assert (report.counts.pairs, report.counts.only_live) == (10, 990)
    assert report.verdict == "no-go"
    assert report.reasons == ["share of unpaired requests is 0.99, more than 0.01"]


def test_an_id_that_comes_twice_is_counted_and_left_out(
    bench: Bench, mesh: Proxy, client: httpx.Client
) -> None:
    bench.plant("twice")
    ids = [str(uuid4()) for _ in range(3)]
    for job_id in [*ids, ids[0], ids[0], ids[1]]:
        client.post("/predict", content=BODY, headers={"x-request-id": job_id})
    wait_until_copied(mesh)
    counts = bench.report().counts
    assert (counts.pairs, counts.repeated) == (1, 2)
    assert counts.only_live == counts.only_shadow == 0


def test_what_both_refuse_and_tests_are_not_compared(
    bench: Bench, mesh: Proxy, client: httpx.Client
) -> None:
    bench.plant("refusals")
    assert client.post("/predict", content=BODY).status_code == 200
    assert client.post("/predict", json={"data": []}).status_code == 422
    assert client.post("/predict", content=b" " * 200_000).status_code == 413
    assert client.get("/predict/test").status_code == 200
    wait_until_copied(mesh)
    counts = bench.report().counts
    assert (counts.pairs, counts.refused) == (1, 2)
    assert counts.errors_of_live == counts.errors_of_shadow == counts.only_live == 0


# Events ------------------------------------------------------------------------------------------


def test_only_the_live_version_takes_events_and_they_decide_who_is_right(
    bench: Bench, mesh: Proxy, client: httpx.Client
) -> None:
    bench.plant("never")
    calls = bench.calls("rf")
    for row, truth in (([[6.7, 3.0, 5.2, 2.3]], "virginica"), (ROW, "setosa"), (ROW, "virginica")):
        job_id = client.post("/predict", json={"data": row}).json()["job_id"]
        event = {"job_id": job_id, "event_id": "1", "event": "label", "value": truth}
        for _ in range(2):
            assert client.post("/event", json=event).status_code == 202
    wait_until_copied(mesh)
    assert bench.calls("rf") == calls + 3
    report = bench.report()
    # The second row is right for both, the third for none.
    assert (report.counts.only_live_right, report.counts.only_shadow_right) == (1, 0)
    assert report.mcnemar_p == 1
    refused = httpx.post(f"{bench.shadow.url}/event", json=event)
    assert (refused.status_code, refused.json()) == (409, {"detail": "a shadow takes no event"})
    bench.report()
    query = "SELECT count(*) FROM records WHERE kind = 'event' AND body ->> 'arm' = 'rf'"
    assert bench.database.value(query) == 0


def test_an_event_that_does_not_fit_is_refused_and_counted_with_its_version(
    tmp_path: Path, bench: Bench, stack: ExitStack
) -> None:
    env = bench.env | {"LOG_MAX_BYTES": "4000", "ARM": "full"}
    server = stack.enter_context(Server(tmp_path, env))
    event = {"job_id": UUID, "event_id": "1", "event": "label", "value": "setosa"}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answers = [client.post("/event", json=event) for _ in range(50)]
        assert client.post("/predict", content=BODY).status_code == 200
    refused = [each for each in answers if each.status_code != 202]
    assert {each.status_code for each in refused} == {503}
    assert refused[-1].headers["retry-after"] == "1"
    server.stop()
    lines = [
        json.loads(line)
        for path in server.directory.glob("*.jsonl")
        for line in path.read_bytes().splitlines()
    ]
    dropped = [line for line in lines if line["kind"] == "dropped"]
    assert sum(line["count"] for line in dropped) == len(refused) + 1
    assert {line["arm"] for line in lines} == {"full"}
    assert len({line["model"] for line in lines}) == 1


# The comparison ----------------------------------------------------------------------------------

GOOD = Pairs(
    pairs=2_000, agreeing=1_950, live_p99_ms=1.0, shadow_p99_ms=2.0, live_p50_ms=0.2,
    shadow_p50_ms=0.3,
)  # fmt: skip
VERDICTS: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "good": ({}, "go", []),
    "nothing": ({"pairs": 0, "agreeing": 0}, "wait", ["0 of 1000 requests"]),
    "too few": ({"pairs": 999, "agreeing": 0}, "wait", ["999 of 1000 requests"]),
    "a bound that is just met": ({"pairs": 1_980, "only_live": 20}, "go", []),
    "too few pairs, but nothing broken": (
        {"pairs": 995, "agreeing": 995, "only_live": 5},
        "wait",
        ["995 of 1000 pairs"],
    ),
    "the mean is above the bound, the interval not": (
        {"agreeing": 1_910},
        "no-go",
        ["agreement may be as low as 0.9450, less than 0.95"],
    ),
    "errors": (
        {"errors_of_shadow": 3},
        "no-go",
        ["share of errors is 0.001498, more than 0.001"],
    ),
    "errors of the live version": ({"errors_of_live": 1_000}, "go", []),
    "slow": (
        {"shadow_p99_ms": 3.1},
        "no-go",
        ["ratio of the 99th percentiles is 3.1, more than 3"],
    ),
    "unpaired": (
        {"only_live": 20, "only_shadow": 1},
        "no-go",
        ["share of unpaired requests is 0.01039, more than 0.01"],
    ),
    "dead from the start": (
        {"pairs": 0, "agreeing": 0, "live_p99_ms": None, "only_live": 1_000},
        "no-go",
        ["share of unpaired requests is 1, more than 0.01"],
    ),
    "repeated": ({"repeated": 5_000}, "go", []),
}


@pytest.mark.parametrize(("change", "verdict", "reasons"), VERDICTS.values(), ids=VERDICTS)
def test_the_verdict_names_what_is_beyond_a_bound(
    change: dict[str, Any], verdict: str, reasons: list[str]
) -> None:
    found = compare(GOOD.model_copy(update=change), RULE)
    assert (found.verdict, found.reasons) == (verdict, reasons)
    if found.agreement is not None and found.agreement_low is not None:
        assert 0 <= found.agreement_low <= found.agreement <= (found.agreement_high or 0) <= 1


def test_the_interval_and_the_test_are_those_of_the_textbook() -> None:
    found = compare(Pairs(pairs=100, agreeing=90, only_live_right=8, only_shadow_right=1), RULE)
    # Wilson, 1927: 90 of 100 is .8256 to .9448 at 95 %.
    assert found.agreement_low == pytest.approx(0.8256, abs=1e-4)
    assert found.agreement_high == pytest.approx(0.9448, abs=1e-4)
    # Exact: twice the chance of one head or none in nine tosses.
    assert found.mcnemar_p == pytest.approx(2 * 10 / 512)


def test_every_bad_version_passes_if_there_is_no_rule() -> None:
    worst = {"agreeing": 1, "errors_of_shadow": 900, "only_live": 900, "shadow_p99_ms": 900.0}
    assert compare(GOOD.model_copy(update=worst), RULE).verdict == "no-go"
    assert compare(GOOD.model_copy(update=worst), NO_RULE).verdict == "go"


class Written:
    """Two logs of planted records, and the report on them."""

    def __init__(self, database: Database, directory: Path) -> None:
        self.database, self.directory = database, directory
        self.settings = database.settings.model_copy(update={"settle_seconds": 0.0})
        self.rule_file = directory / "rule.yml"
        self.rule_file.write_bytes(RULE_FILE.read_bytes())
        self.settings.rule_file = self.rule_file
        name = uuid4().hex[:8]
        self.logs = {
            arm: ArmLog(
                Settings(arm=arm, log_directory=directory / "log" / arm), f"{name}-of-{arm}"
            )
            for arm in ("svc", "rf")
        }

    def predict(self, arm: str, record_id: str, *labels: str, ms: float = 1.0) -> None:
        self.logs[arm].append("prediction", record_id, label=labels, ms=ms)

    def report(self) -> Report:
        self.database.ship(self.directory / "log")
        with self.database.engine.begin() as connection:
            return judge(connection, self.settings)


@pytest.fixture
def written(database: Database, tmp_path: Path) -> Written:
    return Written(database, tmp_path)


def test_rows_are_compared_in_their_order_and_requests_as_a_whole(written: Written) -> None:
    for number, shadow in enumerate((("a", "b"), ("b", "a"), ("a", "a"))):
        written.predict("svc", f"{number:032x}", "a", "b", ms=number)
        written.predict("rf", f"{number:032x}", *shadow, ms=10 * number)
    counts = written.report().counts
    assert (counts.pairs, counts.agreeing) == (3, 1)
    assert counts.labels == [("a", "a", 2), ("a", "b", 1), ("b", "a", 2), ("b", "b", 1)]
    assert (counts.live_p50_ms, counts.shadow_p50_ms) == (1, 10)
    assert (counts.live_p99_ms, counts.shadow_p99_ms) == (2, 20)


def test_a_request_is_unpaired_only_after_the_time_to_settle(written: Written) -> None:
    written.predict("svc", f"{0:032x}", "a")
    written.predict("rf", f"{0:032x}", "a")
    for number, arm in enumerate(("svc", "svc", "rf"), 1):
        written.predict(arm, f"{number:032x}", "a")
    counts = written.report().counts
    assert (counts.pairs, counts.only_live, counts.only_shadow) == (1, 2, 1)
    written.settings.settle_seconds = 3_600
    counts = written.report().counts
    assert (counts.pairs, counts.only_live, counts.only_shadow) == (1, 0, 0)


def test_one_that_refuses_alone_is_an_error_of_that_version(written: Written) -> None:
    for number, (predicts, refuses) in enumerate((("svc", "rf"), ("svc", "rf"), ("rf", "svc"))):
        written.predict(predicts, f"{number:032x}", "a")
        written.logs[refuses].append("refusal", f"{number:032x}", status=500, reason="broken")
    counts = written.report().counts
    assert (counts.errors_of_shadow, counts.errors_of_live, counts.pairs) == (2, 1, 0)


def test_what_the_live_version_did_before_the_shadow_came_is_not_judged(written: Written) -> None:
    for number in range(10):
        written.predict("svc", f"{number:032x}", "a")
    written.predict("rf", f"{9:032x}", "a")
    counts = written.report().counts
    assert (counts.pairs, counts.only_live) == (1, 0)


def test_another_model_is_another_trial(written: Written) -> None:
    for model, label in (("first", "a"), ("second", "b")):
        written.logs["rf"].marks["model"] = f"{model}-{written.directory.name}"
        for number in range(3):
            job_id = uuid4().hex
            written.predict("svc", job_id, "a")
            written.predict("rf", job_id, label)
            report = written.report()
            assert report.counts.pairs == number + 1
            assert report.agreement == (label == "a")
            assert report.shadow_model == written.logs["rf"].marks["model"]


# The rule ----------------------------------------------------------------------------------------


def pair(written: Written) -> None:
    job_id = uuid4().hex
    for arm in ("svc", "rf"):
        written.predict(arm, job_id, "a")


def test_a_rule_that_is_younger_than_the_first_pair_makes_the_verdict_void(
    written: Written,
) -> None:
    before = written.report()
    pair(written)
    first = written.report()
    assert first.verdict == "wait"
    assert first.began is not None
    assert first.rule_seen is not None
    assert first.rule_seen <= first.began
    old = written.rule_file.read_text("utf-8")
    written.rule_file.write_text(old.replace("0.95", "0.5") + f"\n# {uuid4()}\n", "utf-8")
    edited = written.report()
    assert edited.verdict == "void"
    assert edited.reasons[0].startswith("the rule is younger than the first pair: 20")
    assert edited.rule_sha256 != first.rule_sha256 == before.rule_sha256
    # The one that was there before is as old as ever.
    written.rule_file.write_text(old, "utf-8")
    assert written.report().verdict == "wait"
    # Another model has no pair yet.
    written.rule_file.write_text(f"{old}# {uuid4()}\n", "utf-8")
    assert written.report().verdict == "void"
    written.logs["rf"].marks["model"] = f"next-{uuid4().hex[:8]}"
    pair(written)
    assert written.report().verdict == "wait"


def changed(key: str, value: str) -> str:
    lines = RULE_FILE.read_text("utf-8").splitlines()
    return "\n".join(f"{key}: {value}" if line.startswith(f"{key}:") else line for line in lines)


BAD_RULES = {
    "no pairs": (changed("min_pairs", "0"), "min_pairs: Input should be greater than or equal to"),
    "a text": (changed("min_pairs", '"1000"'), "min_pairs: Input should be a valid integer"),
    "half a pair": (changed("min_pairs", "1000.5"), "min_pairs: Input should be a valid integer"),
    "true": (changed("min_pairs", "true"), "min_pairs: Input should be a valid integer"),
    "above 1": (changed("agreement_at_least", "1.5"), "agreement_at_least: Input should be less"),
    "NaN": (changed("agreement_at_least", ".nan"), "agreement_at_least: Input should be"),
    "infinite": (changed("p99_ratio_at_most", ".inf"), "p99_ratio_at_most: Input should be"),
    "negative": (changed("error_share_at_most", "-0.1"), "error_share_at_most: Input should be"),
    "everything": (changed("unpaired_share_at_most", "1"), "unpaired_share_at_most: Input should"),
    "a key that is missing": (changed("min_pairs", "1").replace("min_pairs: 1", ""), "min_pairs: "),
    "a key too many": (f"{RULE_FILE.read_text('utf-8')}max_pairs: 1\n", "max_pairs: Extra"),
    "a key twice": (f"{RULE_FILE.read_text('utf-8')}min_pairs: 1\n", "min_pairs is there 2 times"),
    "a list": ("[1, 2]", "the file: Input should be a valid dictionary"),
    "nothing": ("", "the file: Input should be a valid dictionary"),
    "no YAML": ("min_pairs: [", "while parsing"),
    "a tag of PyYAML": ('!!int ""', "rule.yml: "),
    "huge": ("# " * 20_000, "larger than 20000 bytes"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_RULES.values(), ids=BAD_RULES)
def test_a_rule_out_of_bounds_is_refused_with_its_key(
    written: Written, content: str, reason: str
) -> None:
    written.rule_file.write_text(content, "utf-8")
    with pytest.raises(WrittenError) as refused:
        read(written.rule_file, Rule)
    assert str(refused.value).startswith(f"{written.rule_file}: ")
    assert reason in str(refused.value)
    report = written.report()
    assert (report.verdict, report.reasons) == ("void", [str(refused.value)])


@pytest.mark.parametrize("content", [None, changed("min_pairs", "0")], ids=["none", "bad"])
def test_the_report_does_not_start_without_a_rule(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "rule.yml"
    if content is not None:
        path.write_text(content, "utf-8")
    reason = "min_pairs: Input" if content else "No such file"
    with pytest.raises(ServerError, match=reason):
        run_uvicorn(
            f"{PACKAGE}.app.report:app",
            cwd=ROOT,
            env={"RULE_FILE": str(path)},
            options=guarded(f"{PACKAGE}.app"),
        ).__enter__()


def test_the_shipped_rule_is_what_the_readme_and_the_cluster_have() -> None:
    config_map = yaml.safe_load((HERE / "manifests/config_map.yml").read_text("utf-8"))
    assert config_map["data"] == {"rule.yml": RULE_FILE.read_text("utf-8")}
    deployment = yaml.safe_load((HERE / "manifests/report_deployment.yml").read_text("utf-8"))
    spec = deployment["spec"]["template"]["spec"]
    (mount,) = spec["containers"][0]["volumeMounts"]
    assert "subPath" not in mount
    variables = {each["name"]: each.get("value") for each in spec["containers"][0]["env"]}
    assert variables["RULE_FILE"] == f"{mount['mountPath']}/rule.yml"
    assert (
        Rule(
            min_pairs=1_000,
            agreement_at_least=0.95,
            error_share_at_most=0.001,
            p99_ratio_at_most=3.0,
            unpaired_share_at_most=0.01,
        )
        == RULE
    )


# The service `report` ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reporter(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Reporter, Path]]:
    directory = tmp_path_factory.mktemp("reporter")
    rule_file = directory / "rule.yml"
    rule_file.write_bytes(RULE_FILE.read_bytes())
    env = bench.env | {"RULE_FILE": str(rule_file), "SETTLE_SECONDS": "0"}
    with Reporter(directory, env | {"DATABASE_DEADLINE_SECONDS": "60"}) as running:
        yield running, rule_file


def test_the_report_and_its_page_say_the_same(
    bench: Bench, mesh: Proxy, reporter: tuple[Reporter, Path]
) -> None:
    server, _ = reporter
    bench.plant("shuffled")
    send(mesh, bodies(160))
    bench.report()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        report, page = client.get("/report").json(), client.get("/")
    assert report["verdict"] == "wait"
    assert report["reasons"] == ["160 of 1000 requests"]
    assert report["counts"]["pairs"] == 160
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for shown in ("160 of 1000 requests", report["shadow_model"], report["live_model"]):
        assert shown in page.text


def test_the_page_escapes_what_is_in_the_log(
    written: Written, reporter: tuple[Reporter, Path]
) -> None:
    server, _ = reporter
    written.logs["rf"].marks["model"] = "<script>alert(1)</script>"
    written.predict("svc", f"{0:032x}", "<b>")
    written.predict("rf", f"{0:032x}", "<i>")
    written.report()
    page = httpx.get(f"{server.url}/", timeout=60).text
    assert "&lt;script&gt;" in page
    for markup in ("<script", "<b>", "<i>"):
        assert markup not in page


def test_readiness_notices_a_new_rule_before_the_first_pair(
    bench: Bench, mesh: Proxy, reporter: tuple[Reporter, Path]
) -> None:
    server, rule_file = reporter
    rule_file.write_text(changed("min_pairs", "200"), "utf-8")
    assert httpx.get(f"{server.url}/ready", timeout=60).status_code == 200
    bench.plant(f"after-{uuid4().hex[:8]}")
    send(mesh, bodies(PLACES))
    bench.report()
    report = httpx.get(f"{server.url}/report", timeout=60).json()
    assert report["reasons"] == ["16 of 200 requests"]
    rule_file.write_text("broken", "utf-8")
    assert httpx.get(f"{server.url}/ready", timeout=60).status_code == 200
    assert httpx.get(f"{server.url}/report", timeout=60).json()["verdict"] == "void"
    rule_file.write_bytes(RULE_FILE.read_bytes())


def test_one_shipper_reads_both_folders(bench: Bench, mesh: Proxy, stack: ExitStack) -> None:
    bench.plant("shipped")
    shared = bench.env | {"LOG_DIRECTORY": str(bench.parent)}
    stack.enter_context(Shipper(bench.parent, shared))
    send(mesh, bodies(5 * PLACES))

    def is_complete() -> bool:
        with bench.database.engine.begin() as connection:
            report = judge(connection, bench.settings)
        return report.counts.pairs == 5 * PLACES

    wait_until(is_complete, "the pairs", 60)


def test_without_postgresql_requests_go_on_and_the_report_says_so(
    bench: Bench, mesh: Proxy, reporter: tuple[Reporter, Path], client: httpx.Client
) -> None:
    server, _ = reporter
    bench.plant("without-postgresql")
    bench.database.kill()
    try:
        answers = [client.post("/predict", content=BODY) for _ in range(20)]
        refused = [httpx.get(f"{server.url}{path}", timeout=60) for path in ("/report", "/ready")]
        alive = httpx.get(f"{server.url}/health", timeout=60)
    finally:
        bench.database.start()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.status_code for answer in refused} == {503}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert refused[0].json() == {"detail": "the database is not available"}
    assert alive.status_code == 200
    wait_until_copied(mesh)
    counts = bench.report().counts
    assert counts.pairs + counts.only_live == 20


# Manifests, training and measurement -------------------------------------------------------------


def manifest(name: str) -> Any:
    return yaml.safe_load((HERE / f"manifests/{name}.yml").read_text("utf-8"))


def test_every_request_but_an_event_is_mirrored_and_no_pod_belongs_to_both() -> None:
    routes = {each["name"]: each for each in manifest("virtual_service")["spec"]["http"]}
    assert {name for name, route in routes.items() if "mirror" not in route} == {"event"}
    for route in routes.values():
        assert [each["destination"]["subset"] for each in route["route"]] == ["svc"]
        assert route.get("mirror", {"subset": "rf"})["subset"] == "rf"
    selectors = []
    for version in ("svc", "rf"):
        deployment, scaler = manifest(f"{version}_deployment"), manifest(f"{version}_hpa")
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        selectors.append(deployment["spec"]["selector"]["matchLabels"])
        (shipper,) = deployment["spec"]["template"]["spec"]["initContainers"]
        assert shipper["restartPolicy"] == "Always"
    assert selectors == [{"app": "iris", "version": "svc"}, {"app": "iris", "version": "rf"}]


def test_the_three_models_are_what_they_are_called(models: Path) -> None:
    def accuracy(directory: Path) -> float:
        metadata = json.loads((directory / "metadata.json").read_bytes())
        return float(metadata["metrics"]["accuracy"])

    assert accuracy(models) > 0.95
    assert accuracy(models / "rf") > 0.95
    assert accuracy(models / "shuffled") < 0.6


@pytest.mark.budget("measure --quick")
def test_the_measurement_holds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "measure")], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.holds
    assert results.counts["bad_versions_stopped"] == len(BAD)
    for name, value in results.control.items():
        assert value != results.counts[name], name
