"""load_test_pattern: real Locust processes load a real API, and servers that do nothing."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from chapter6_operation_management.load_test_pattern.app.schema import PredictRequest
from chapter6_operation_management.load_test_pattern.load.bodies import ROWS, bodies
from chapter6_operation_management.load_test_pattern.load.objective import (
    Step,
    Totals,
    judge,
    percentile,
)
from chapter6_operation_management.load_test_pattern.load.settings import Settings, read
from chapter6_operation_management.load_test_pattern.measure.__main__ import results_of
from chapter6_operation_management.load_test_pattern.measure.arms import HERE, ROOT, null
from chapter6_operation_management.load_test_pattern.measure.locusts import Locust, ended
from tools.measure.results import load as load_results
from tools.measure.server import Server
from tools.run.ports import free_port

# A busy machine may take as long as it likes.
PATIENT = {"objective_p99_ms": 60_000, "max_lag_p99_ms": 60_000}
BEFORE = Totals(sent=50, errors=5, times_ms={900: 50}, lags_ms={90: 50})


@pytest.fixture(scope="module", autouse=True)
def model() -> None:
    """Trains the model unless it is there already."""
    if not (HERE / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=HERE, check=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Answers everything at once."""
    with null() as server:
        yield server


def names_of(run: Locust) -> dict[str, int]:
    """Returns the number of requests in each row of Locust's table."""
    assert "Traceback" not in run.output, run.output
    return run.requests


# The objective ---------------------------------------------------------------------------------


def after(times_ms: dict[int, int], waiting: int = 0, errors: int = 0, lag_ms: int = 1) -> Totals:
    """Returns the totals after a step with these times, added to those of the step before."""
    sent = sum(times_ms.values()) + waiting
    return Totals(
        sent=BEFORE.sent + sent,
        errors=BEFORE.errors + errors,
        times_ms={**BEFORE.times_ms, **times_ms},
        lags_ms={**BEFORE.lags_ms, lag_ms: sent},
    )


def step_of(totals: Totals, rate: float = 100) -> Step:
    return judge(rate, BEFORE, totals, Settings(objective_p99_ms=250, max_lag_p99_ms=20))


def test_a_step_is_judged_by_its_own_requests() -> None:
    step = step_of(after({10: 990, 240: 10}))
    assert step == Step(100, 10, 10, 0, 1, "")
    assert str(step) == ("100/s: p50 10 ms, p99 10 ms, errors 0.00%, sent late by 1 ms: held")


@pytest.mark.parametrize(
    ("totals", "why"),
    [
        (after({10: 989, 260: 11}), "p99 above 250 ms"),
        (after({250: 1000}), ""),
        (after({10: 1000}, errors=1), ""),
        (after({10: 1000}, errors=2), "more errors than 0.10%"),
        (after({10: 1000}, lag_ms=21), "the generator is late by over 20 ms"),
        (after({}), "no request was answered"),
        # It hangs: 25 of 100 requests per second may still be in time.
        (after({}, waiting=1000), "no request was answered"),
        (after({10: 990}, waiting=25), ""),
        (after({10: 990}, waiting=25 + 11), "p99 above 250 ms"),
    ],
)
def test_what_misses_the_objective_says_why(totals: Totals, why: str) -> None:
    missed = step_of(totals).missed
    assert why in missed
    assert bool(missed) == bool(why)


def test_the_percentile_is_that_of_the_nearest_rank() -> None:
    assert percentile({}, 99) == 0
    assert percentile({7: 1}, 99) == 7
    assert percentile({1: 99, 5: 1}, 99) == 1
    assert percentile({1: 98, 5: 2}, 99) == 5
    assert percentile({1: 1, math.inf: 1}, 50) == 1
    assert percentile({1: 1, math.inf: 1}, 99) == math.inf


# What is sent ----------------------------------------------------------------------------------


def test_the_bodies_are_valid_differ_and_are_the_same_in_every_run() -> None:
    sent = bodies()
    assert sent == bodies()
    assert len(set(sent)) == len(sent)
    counts = [len(PredictRequest.model_validate_json(body).data) for body in sent]
    assert set(counts) == set(ROWS)
    assert len(set(ROWS)) > 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OBJECTIVE_P99_MS", "0"),
        ("OBJECTIVE_P99_MS", "nan"),
        ("OBJECTIVE_P99_MS", "inf"),
        ("OBJECTIVE_P99_MS", "soon"),
        ("OBJECTIVE_P99_MS", ""),
        ("OBJECTIVE_ERROR_SHARE", "-0.1"),
        ("OBJECTIVE_ERROR_SHARE", "nan"),
        ("OBJECTIVE_ERROR_SHARE", "1"),
        ("RATE", "0"),
        ("RATE", "-1"),
        ("RATE", "nan"),
        ("RATE", "1e9"),
        ("STEPS", "0"),
        ("STEPS", "1.5"),
        ("STEP_SECONDS", "0"),
        ("MAX_LAG_P99_MS", "nan"),
        ("CONNECTIONS", "0"),
    ],
)
def test_an_invalid_setting_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=f"^error: {name.lower()} is '{value}': "):
        read()


def test_locust_starts_with_no_invalid_setting_and_sends_nothing(server: Server) -> None:
    run = ended(server.url, rate=math.nan)
    assert run.exit_code == 1
    assert run.output.startswith("error: rate is 'nan': ")
    assert len(run.output.splitlines()) == 1


@pytest.mark.parametrize("host", ["http://example.com", "http://[", "127.0.0.1"])
def test_load_goes_to_no_other_host(host: str) -> None:
    run = ended(host, **PATIENT)
    assert f"refused to send load to {host}: LOAD_HOSTS is api,127.0.0.1,localhost" in run.output
    assert (run.exit_code, names_of(run)) == (1, {})


class Redirecting(BaseHTTPRequestHandler):
    """Redirects every request to another path, and counts those that come there."""

    protocol_version = "HTTP/1.1"
    followed = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        type(self).followed += self.path != "/predict"
        self.send_response(307)
        self.send_header("location", f"http://{self.headers['host']}/other")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_load_follows_no_redirect() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        run = ended(url, rate=50, steps=1, step_seconds=1, **PATIENT)
        server.shutdown()
    assert Redirecting.followed == 0
    assert run.exit_code == 1
    assert [step.errors_percent for step in run.steps] == [100]


def test_the_defaults_of_compose_are_those_of_the_settings() -> None:
    compose = yaml.safe_load((HERE / "docker-compose.yml").read_text("utf-8"))
    shown = compose["services"]["locust"]["environment"]
    given = {name: value.partition(":-")[2].rstrip("}") for name, value in shown.items()}
    assert Settings(**{name.lower(): value for name, value in given.items()}) == Settings()


# The ramp --------------------------------------------------------------------------------------


def test_every_step_is_offered_while_the_objective_holds(server: Server, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    run = ended(server.url, "--html", str(report), rate=120, steps=3, step_seconds=1, **PATIENT)
    assert [(step.rate, step.verdict) for step in run.steps] == [
        (rate, "held") for rate in (40, 80, 120)
    ]
    assert "the objective held up to 120/s of 120/s" in run.output
    assert run.exit_code == 0
    rows = names_of(run)
    assert set(rows) == {"as a caller sees it", "from the schedule", "sent late by"}
    assert rows["as a caller sees it"] == rows["from the schedule"] > 0
    assert "from the schedule" in report.read_text("utf-8")


def test_the_first_step_that_misses_is_the_last(server: Server) -> None:
    # Nothing answers in a thousandth of a millisecond, which Locust rounds up.
    run = ended(server.url, rate=120, steps=3, step_seconds=1, objective_p99_ms=0.001)
    assert [step.rate for step in run.steps] == [40]
    assert "step 1 of 3, 40/s" in run.output
    assert "missed" in run.steps[0].verdict or "discarded" in run.steps[0].verdict
    assert "the objective held up to 0/s of 120/s" in run.output
    assert run.exit_code == 1


def test_without_a_server_errors_are_counted_and_the_exit_code_is_1() -> None:
    run = ended(f"http://127.0.0.1:{free_port()}", rate=50, steps=2, step_seconds=1, **PATIENT)
    assert [step.errors_percent for step in run.steps] == [100]
    assert "more errors than 0.10%" in run.steps[0].verdict
    assert run.exit_code == 1
    assert names_of(run)["as a caller sees it"] > 0


def test_two_processes_share_the_rate(server: Server) -> None:
    run = ended(server.url, "--processes", "2", rate=100, steps=1, step_seconds=5, **PATIENT)
    assert run.exit_code == 0
    # Five seconds at 100 per second, of which the workers report the last three late.
    assert 100 < names_of(run)["from the schedule"] < 1_000


# The measurement -------------------------------------------------------------------------------


def test_the_claim_holds_only_with_the_mechanisms_and_not_without() -> None:
    seen, unseen = ({"due": 300.0, "seen": number} for number in (290.0, 10.0))
    assert results_of([seen, unseen], (0, 0), (1, 10)).holds
    assert not results_of([unseen, unseen], (0, 0), (1, 10)).holds
    assert not results_of([seen, unseen], (1, 0), (1, 10)).holds
    assert not results_of([seen, unseen], (0, 1), (1, 10)).holds
    # A control that does not fail shows nothing.
    assert not results_of([seen, seen], (0, 0), (1, 10)).holds
    assert not results_of([seen, unseen], (0, 0), (0, 10)).holds
    assert not results_of([seen, unseen], (0, 0), (1, 0)).holds


@pytest.mark.budget("measure --quick")
def test_the_measurement_holds(tmp_path: Path) -> None:
    module = "chapter6_operation_management.load_test_pattern.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / "measure")]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    results = load_results(tmp_path)
    assert results.holds
    assert results.control["stalled_requests_seen"] == 10
    assert results.control["over_objective_passed"] == 1
    assert results.control["oversized_answered"] == 10
    assert json.loads((tmp_path / "measure/results.json").read_text("utf-8"))["series"] == {}
