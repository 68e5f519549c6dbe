"""condition_based_pattern: real models and router behind a real Envoy, as shipped."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import onnxruntime
import pytest
import yaml
from sklearn.datasets import load_digits

from chapter6_operation_management.condition_based_pattern.app.conditions import (
    Band,
    Bands,
    BandsError,
    condition_of,
)
from chapter6_operation_management.condition_based_pattern.app.conditions import load as load_bands
from chapter6_operation_management.condition_based_pattern.measure.__main__ import (
    CASES,
    count_right,
    count_unknown,
    models_of,
)
from chapter6_operation_management.condition_based_pattern.measure.accuracy import (
    each_alone,
    logistic,
    mcnemar_p,
    routed_right,
    single_right,
)
from chapter6_operation_management.condition_based_pattern.measure.cases import (
    DATES,
    EDGES,
    UNKNOWN,
    UPRIGHT,
    UPSIDE_DOWN,
    Case,
)
from chapter6_operation_management.condition_based_pattern.measure.processes import (
    DIRECTORIES,
    HERE,
    ROOT,
    Models,
    run_default,
    run_mesh,
    run_models,
    run_router,
)
from chapter6_operation_management.condition_based_pattern.train.model import (
    CONDITIONS,
    classifier,
    load,
    seen,
)
from tools.measure.results import load as load_results
from tools.measure.server import ServerError, wait_until
from tools.mesh.proxy import Proxy, proxy, shipped
from tools.run.ports import free_port

BANDS = HERE / "app/bands.toml"
SAMPLE: dict[str, Any] = json.loads((HERE / "sample.json").read_bytes())
ROWS = {"data": SAMPLE["data"]}
DAY, NIGHT = "2025-06-21T09:00:00+02:00", "2025-06-21T23:00:00+02:00"
PATIENCE_SECONDS = 60.0
GONE = {"detail": "the model for this condition is out of reach"}


@pytest.fixture(scope="module", autouse=True)
def trained() -> None:
    """Trains the models unless they are there already."""
    if not (HERE / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=HERE, check=True)


@pytest.fixture(scope="module")
def models(trained: None) -> Iterator[Models]:
    with run_models() as running:
        yield running


@pytest.fixture(scope="module")
def mesh(models: Models) -> Iterator[Proxy]:
    with run_mesh(models) as running:
        yield running


@contextmanager
def calling(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(mesh: Proxy) -> Iterator[httpx.Client]:
    with calling(mesh.url) as client:
        yield client


# Routing ---------------------------------------------------------------------------------------


def test_every_request_of_the_table_reaches_its_model(mesh: Proxy) -> None:
    found = models_of(mesh.url, CASES)
    wrong = [(case, model) for case, model in zip(CASES, found, strict=True) if model != case.model]
    assert wrong == []
    assert len(CASES) == len(set(CASES)) >= 96
    assert {case.model for case in CASES} == {UPRIGHT, UPSIDE_DOWN, None}
    # Both Sundays of the table are those on which the clock changes.
    berlin = ZoneInfo("Europe/Berlin")
    for date, hours in DATES.items():
        for hour, offset in zip((0, 7), hours, strict=True):
            at = datetime.fromisoformat(date).replace(hour=hour, tzinfo=berlin)
            assert at.utcoffset() == timedelta(hours=offset)


def test_bands_that_include_their_end_miss_exactly_the_edges_between_two_models(
    models: Models,
) -> None:
    with run_mesh(models, "measure.baselines:app") as closed:
        found = models_of(closed.url, CASES)
    missed = [case for case, model in zip(CASES, found, strict=True) if model != case.model]
    # Two writings of 19:00:00.000 on each date; at 07:00 the first band comes before the last.
    assert len(missed) == 2 * len(DATES)
    berlin = ZoneInfo("Europe/Berlin")
    for case in missed:
        at = datetime.fromisoformat(case.taken_at or "").astimezone(berlin)
        assert (at.time(), case.model) == (time(19), EDGES["19:00"][1])


def test_an_unknown_condition_gets_a_reason_from_the_mesh_and_reaches_no_server(
    client: httpx.Client, mesh: Proxy
) -> None:
    assert count_unknown(mesh) == 0
    for value in UNKNOWN:
        headers = {"target": value}
        for method, path in (("POST", "/predict"), ("GET", "/predict/test"), ("GET", "/metadata")):
            answer = client.request(method, path, headers=headers, json=SAMPLE)
            assert answer.status_code == 422
            assert answer.headers["content-type"] == "application/json"
            assert "upright or upside-down" in answer.json()["detail"]
            assert "x-model" not in answer.headers


def test_by_the_route_of_the_book_every_unknown_condition_gets_a_prediction(
    models: Models,
) -> None:
    with run_default(models) as default:
        assert count_unknown(default) == len(UNKNOWN)


@pytest.mark.parametrize(
    ("condition", "name"), [("upright", UPRIGHT), ("upside-down", UPSIDE_DOWN)]
)
def test_a_row_gets_the_prediction_of_the_model_for_its_condition(
    client: httpx.Client, condition: str, name: str
) -> None:
    rows = seen(load_digits().data[:32].astype(np.float32), condition)
    session = onnxruntime.InferenceSession(DIRECTORIES[condition] / "model.onnx")
    (expected,) = session.run(["probabilities"], {"X": np.ascontiguousarray(rows)})
    taken_at = {"upright": DAY, "upside-down": NIGHT}[condition]
    for headers, when in (({"target": condition}, {}), ({}, {"taken_at": taken_at})):
        body = {"data": rows.tolist(), **when}
        answer = client.post("/predict", json=body, headers=headers)
        assert np.allclose(answer.json()["prediction"], expected, rtol=0, atol=1e-5)
        labels = client.post("/predict/label", json=body, headers=headers)
        assert labels.json()["prediction"] == [str(digit) for digit in expected.argmax(axis=1)]
        assert {answer.headers["x-model"], labels.headers["x-model"]} == {name}


def test_every_response_of_a_model_names_it(client: httpx.Client) -> None:
    for condition, name in zip(CONDITIONS, (UPRIGHT, UPSIDE_DOWN), strict=True):
        for path in ("/predict/test", "/predict/test/label", "/metadata", "/label", "/nowhere"):
            answer = client.get(path, headers={"target": condition})
            assert answer.headers["x-model"] == name
        refused = client.post("/predict", headers={"target": condition}, json={"data": []})
        assert (refused.status_code, refused.headers["x-model"]) == (422, name)
        assert client.get("/metadata", headers={"target": condition}).json()["name"] == name
    # The example of router is taken by day.
    for path in ("/predict/test", "/metadata"):
        by_day = client.get(path, headers={"target": "upright"})
        assert (client.get(path).json(), client.get(path).headers["x-model"]) == (
            by_day.json(),
            UPRIGHT,
        )


def test_the_manifests_the_bands_and_compose_name_the_same_conditions() -> None:
    def manifest(name: str) -> Any:
        return yaml.safe_load((HERE / f"manifests/{name}.yml").read_text("utf-8"))

    routes = manifest("virtual_service")["spec"]["http"]
    exact = [
        match["headers"]["target"].get("exact")
        for route in routes
        for match in route.get("match", [])
    ]
    assert [value for value in exact if value] == list(CONDITIONS)
    subsets = [subset["name"] for subset in manifest("destination_rule")["spec"]["subsets"]]
    assert subsets == [*CONDITIONS, "router"]
    assert {band.condition for band in load_bands(BANDS).bands} == set(CONDITIONS)
    selectors = []
    for name in ("upright", "upside_down", "router"):
        deployment, scaler = manifest(f"{name}_deployment"), manifest(f"{name}_hpa")
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
        selectors.append(deployment["spec"]["selector"]["matchLabels"])
    assert [selector["version"] for selector in selectors] == subsets


# The time of the picture -------------------------------------------------------------------------

BAD_TIMES = {
    "no offset": ("2025-07-15T09:00:00", "with its offset"),
    "a date": ("2025-07-15", "with its offset"),
    "year 0": ("0000-07-15T09:00:00Z", "year 0"),
    "not a time": ("yesterday", "with its offset"),
    "no text": (True, "with its offset"),
    "seconds since 1970": (1_752_562_800, "with its offset"),
    "the same as text": ("1752562800", "with its offset"),
    "nothing": (None, "with its offset"),
    "a list": ([DAY], "with its offset"),
    "endless": (f"2025-07-15T09:00:00.{'0' * 5_000}Z", "with its offset"),
    "other digits": ("٢٠٢٥-07-15T09:00:00Z", "with its offset"),
    "no such day": ("2025-02-29T09:00:00Z", "day value"),
    "no such hour": ("2025-07-15T24:00:00Z", "valid datetime"),
    "in 2262": ("2262-04-12T09:00:00Z", "not in the future"),
    "the last moment": ("9999-12-31T23:59:59-12:00", "not in the future"),
    "the first moment": ("0001-01-01T00:00:00+14:00", "from 1970"),
}


@pytest.mark.parametrize(("taken_at", "reason"), BAD_TIMES.values(), ids=BAD_TIMES)
def test_a_time_that_says_no_condition_is_refused(
    client: httpx.Client, taken_at: object, reason: str
) -> None:
    answer = client.post("/predict/label", json={**ROWS, "taken_at": taken_at})
    assert (answer.status_code, reason in answer.text) == (422, True), answer.text
    assert "x-model" not in answer.headers


def test_neither_a_header_nor_a_time_is_refused(client: httpx.Client) -> None:
    answer = client.post("/predict/label", json=ROWS)
    assert answer.status_code == 422
    assert answer.json()["detail"] == [{"loc": ["body", "taken_at"], "msg": "Field required"}]


def test_a_clock_may_be_a_little_ahead_and_not_an_hour(client: httpx.Client) -> None:
    for ahead, status in ((timedelta(minutes=1), 200), (timedelta(hours=1), 422)):
        taken_at = (datetime.now(UTC) + ahead).isoformat()
        assert client.post("/predict", json={**ROWS, "taken_at": taken_at}).status_code == status


def test_the_header_wins_over_the_time(client: httpx.Client) -> None:
    for condition, taken_at in (("upright", NIGHT), ("upside-down", DAY), ("upright", "nonsense")):
        body = {**ROWS, "taken_at": taken_at}
        answer = client.post("/predict/label", json=body, headers={"target": condition})
        assert answer.headers["x-model"] == f"digits_{condition.replace('-', '_')}"


def test_rows_that_a_model_refuses_are_refused_by_router_too(client: httpx.Client) -> None:
    for data in ([], [[0.0]], [[17.0] * 64], None):
        for headers in ({}, {"target": "upright"}):
            answer = client.post("/predict", json={"data": data, "taken_at": DAY}, headers=headers)
            assert answer.status_code == 422
            assert answer.json()["detail"]


# The bands ---------------------------------------------------------------------------------------


def bands(*parts: tuple[str, str, str], zone: str = "Europe/Berlin") -> str:
    written = [
        f'{{from = {start}, to = {end}, condition = "{condition}"}}'
        for start, end, condition in parts
    ]
    return f'zone = "{zone}"\nbands = [{", ".join(written)}]\n'


WHOLE = (("07:00:00", "19:00:00", "upright"), ("19:00:00", "07:00:00", "upside-down"))
BAD_BANDS = {
    "a gap": (
        bands(("07:00:00", "18:30:00", "upright"), WHOLE[1]),
        "18:30:00 to 19:00:00 is in no band",
    ),
    "a gap over midnight": (
        bands(WHOLE[0], ("19:00:00", "23:00:00", "upside-down")),
        "23:00:00 to 07:00:00 is in no band",
    ),
    "an overlap": (
        bands(("06:00:00", "19:00:00", "upright"), WHOLE[1]),
        "06:00:00 to 07:00:00 is in 2 bands",
    ),
    "a band twice": (bands(*WHOLE, WHOLE[0]), "07:00:00 to 19:00:00 is in 2 bands"),
    "the whole day and more": (
        bands(("00:00:00", "00:00:00", "upright"), WHOLE[0]),
        "07:00:00 to 19:00:00 is in 2 bands",
    ),
    "no bands": ('zone = "UTC"\nbands = []\n', "bands: List should have at least 1 item"),
    "an unknown condition": (
        bands(("00:00:00", "00:00:00", "sideways")),
        "bands.0.condition: Input should be 'upright' or 'upside-down'",
    ),
    "an unknown zone": (bands(*WHOLE, zone="Mars/Olympus"), "zone: "),
    "hours as numbers": (
        bands(("7", "19", "upright")),
        "bands.0.from: Input should be a valid time",
    ),
    "a misspelt key": (bands(*WHOLE).replace("from", "form"), "bands.0.from: Field required"),
    "no TOML": ("bands: []\n", "Expected '='"),
    "nothing": ("", "zone: Field required"),
    "no text": ("\xff\xfe", "Invalid"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_BANDS.values(), ids=BAD_BANDS)
def test_bands_that_leave_a_time_open_are_named(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "bands.toml"
    path.write_text(content, "utf-8")
    with pytest.raises(BandsError) as refused:
        load_bands(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert reason in str(refused.value)


def test_router_does_not_start_with_a_gap_or_without_the_file(tmp_path: Path) -> None:
    content, reason = BAD_BANDS["a gap"]
    path = tmp_path / "bands.toml"
    path.write_text(content, "utf-8")
    for file, why in ((path, reason), (tmp_path / "none.toml", "No such file")):
        with pytest.raises(ServerError, match=why):
            run_router("http://127.0.0.1:1", BANDS_FILE=str(file)).__enter__()


def test_one_band_may_be_the_whole_day() -> None:
    day = Band.model_validate({"from": time(0), "to": time(0), "condition": "upright"})
    whole = Bands(zone=ZoneInfo("UTC"), bands=[day])
    for hour in (0, 12, 23):
        at = datetime(2025, 1, 1, hour, tzinfo=UTC)
        assert condition_of(at, whole.bands, whole.zone) == "upright"


# What is away ------------------------------------------------------------------------------------


def test_a_model_that_is_away_costs_only_its_own_condition(models: Models) -> None:
    with run_models() as others, run_mesh(others) as running, calling(running.url) as client:
        others["upright"].kill()
        for headers, when in (({"target": "upright"}, {}), ({}, {"taken_at": DAY})):
            answer = client.post("/predict", json={**ROWS, **when}, headers=headers)
            assert (answer.status_code, answer.json()) == (503, GONE)
            assert answer.headers["retry-after"] == "1"
        for headers, when in (({"target": "upside-down"}, {}), ({}, {"taken_at": NIGHT})):
            answer = client.post("/predict/label", json={**ROWS, **when}, headers=headers)
            assert answer.json() == {"prediction": ["9"]}
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]


def test_without_router_requests_with_the_header_go_on(models: Models) -> None:
    with run_router("http://127.0.0.1:1") as router:
        running = {**models, "router": router}
        with proxy(HERE, shipped(HERE), running) as mesh, calling(mesh.url) as client:
            router.kill()
            assert client.post("/predict", json=SAMPLE).status_code == 503
            answer = client.post("/predict/label", json=SAMPLE, headers={"target": "upright"})
            assert answer.json() == {"prediction": ["6"]}


def test_without_the_mesh_router_says_so_and_stays_ready() -> None:
    with (
        run_router(f"http://127.0.0.1:{free_port()}") as router,
        calling(router.url) as client,
    ):
        answer = client.post("/predict", json=SAMPLE)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json() == {"detail": "the mesh is out of reach"}
        assert client.get("/metadata").status_code == 503
        assert client.get("/ready").status_code == 200
        reason = "503 the mesh is out of reach"
        wait_until(lambda: reason in router.log.read_text("utf-8"), "the log to say so")


def test_what_is_no_response_of_a_model_is_a_502(models: Models) -> None:
    """The address of router is wrong: it leads to a server with other paths."""
    with (
        run_router(f"{models['upright'].url}/elsewhere") as router,
        calling(router.url) as client,
    ):
        answer = client.post("/predict", json=SAMPLE)
        assert answer.status_code == 502
        assert answer.json() == {"detail": "the mesh responded with status 404"}


def test_a_mesh_that_hangs_costs_a_caller_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with run_router(url, DEADLINE_SECONDS="0.2") as router, calling(router.url) as client:
            answer = client.post("/predict", json=SAMPLE)
    assert (answer.status_code, answer.json()) == (504, {"detail": "no response within 0.2 s"})


# Training and measurement ------------------------------------------------------------------------


def test_a_six_that_is_turned_is_a_nine_for_the_other_model() -> None:
    split = load()
    six, nine = (split.x_test[split.y_test == digit] for digit in (6, 9))
    for condition, other in zip(CONDITIONS, reversed(CONDITIONS), strict=True):
        session = onnxruntime.InferenceSession(DIRECTORIES[other] / "model.onnx")
        for digits, looks_like in ((six, 9), (nine, 6)):
            rows = np.ascontiguousarray(seen(digits, condition))
            (probabilities,) = session.run(["probabilities"], {"X": rows})
            assert (probabilities.argmax(axis=1) == looks_like).mean() > 0.5


def test_the_served_models_are_those_of_scikit_learn() -> None:
    split = load()
    for condition, directory in DIRECTORIES.items():
        x_train, x_test = seen(split.x_train, condition), seen(split.x_test, condition)
        expected = classifier().fit(x_train, split.y_train).predict_proba(x_test)
        session = onnxruntime.InferenceSession(directory / "model.onnx")
        (found,) = session.run(["probabilities"], {"X": np.ascontiguousarray(x_test)})
        assert np.allclose(found, expected, rtol=0, atol=1e-4)


def test_routing_is_more_accurate_than_one_model_and_a_wrong_route_less(mesh: Proxy) -> None:
    routed, single = routed_right(mesh.url), single_right(classifier(), rows=898)
    assert len(routed) == len(single) == 1_798
    assert routed.mean() >= single.mean() + 0.02
    assert mcnemar_p(routed, single) < 0.001
    assert routed_right(mesh.url, misrouted=True).mean() < 0.5
    # A linear model cannot use the condition, even with twice the rows.
    linear = single_right(logistic(), rows=1_796, condition_weight=16)
    assert each_alone(logistic).mean() >= linear.mean() + 0.04


def test_mcnemars_test_counts_only_the_rows_that_differ() -> None:
    same, ours = np.array([True] * 8), np.array([True] * 8)
    assert mcnemar_p(ours, same) == 1
    theirs = np.array([False] * 6 + [True] * 2)
    # Six of six tosses: twice 1/64.
    assert mcnemar_p(ours, theirs) == pytest.approx(2 / 64)
    assert mcnemar_p(theirs, ours) == pytest.approx(2 / 64)


@pytest.mark.budget("measure --quick")
def test_the_measurement_holds(tmp_path: Path) -> None:
    module = "chapter6_operation_management.condition_based_pattern.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / "measure")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.holds
    assert results.counts["routed_right"] == len(CASES) > results.control["routed_right"]
    assert results.counts["unknown_answered"] == 0
    assert results.control["unknown_answered"] == len(UNKNOWN)


def test_the_table_counts_a_request_that_reaches_another_model_as_wrong(mesh: Proxy) -> None:
    assert count_right(mesh) == len(CASES)
    assert models_of(mesh.url, [Case((("target", "upright"),), None, UPSIDE_DOWN)]) == [UPRIGHT]
