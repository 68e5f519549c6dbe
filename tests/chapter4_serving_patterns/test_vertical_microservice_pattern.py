"""vertical_microservice_pattern: real stages that hang, die and do not fit, and spans in order."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest

from chapter4_serving_patterns.vertical_microservice_pattern.measure.__main__ import targets_of
from chapter4_serving_patterns.vertical_microservice_pattern.measure.counts import (
    count_all,
    is_in_order,
)
from chapter4_serving_patterns.vertical_microservice_pattern.measure.processes import (
    BODY,
    HERE,
    PATIENT,
    WIDTHS,
    Services,
    run_proxy,
    run_service,
    run_services,
    traced_by,
    unseen_rows,
    urls_of,
)
from chapter4_serving_patterns.vertical_microservice_pattern.proxy.calls import Reply, Service
from chapter4_serving_patterns.vertical_microservice_pattern.proxy.stages import LABELS, within
from chapter4_serving_patterns.vertical_microservice_pattern.proxy.stages import (
    READERS as READERS_OF_PROXY,
)
from chapter4_serving_patterns.vertical_microservice_pattern.train.digits import Split, load
from chapter4_serving_patterns.vertical_microservice_pattern.train.stages import (
    READERS,
    STAGES,
    answered,
    both_ways,
    fit_earlier,
    out_of_fold,
    turned,
)
from tools.measure.results import MEETS
from tools.measure.server import Server, ServerError, suspended, wait_until
from tools.measure.spans import Receiver, Span, receiving

# Only what hangs is late, however busy the machine is.
SHORT = {"DEADLINE_SECONDS": "2"}
NOWHERE = dict.fromkeys(STAGES, "http://127.0.0.1:9")
# The first image is upright and read at once, the second one is turned and read again.
PATHS = [["orientation", "upright"], ["orientation", "turned", "second"]]
LABELLED = {"prediction": ["4", "1"], "stages": PATHS}


@pytest.fixture(scope="module", autouse=True)
def models() -> None:
    """Trains the models unless they are there already."""
    if not (HERE / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=HERE, check=True)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def services(models: None, receiver: Receiver) -> Iterator[Services]:
    with run_services(traced_by(receiver)) as running:
        yield running


@pytest.fixture(scope="module")
def client(services: Services, receiver: Receiver) -> Iterator[httpx.Client]:
    variables = PATIENT | traced_by(receiver)
    with run_proxy(urls_of(services), variables) as server, client_of(server) as client:
        yield client


def client_of(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60, trust_env=False)


def ask(client: httpx.Client, path: str = "/predict/label", body: bytes = BODY) -> Any:
    answer = client.post(path, content=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def calls_of(services: Services) -> dict[str, int]:
    return {name: httpx.get(f"{server.url}/calls").json() for name, server in services.items()}


# --- whole answers --------------------------------------------------------------------------------


def test_each_row_takes_the_stages_that_it_needs(client: httpx.Client) -> None:
    answer = client.post("/predict", content=BODY)
    assert answer.json()["stages"] == PATHS
    assert [sum(row) for row in answer.json()["prediction"]] == pytest.approx([1, 1])
    assert "missing" not in answer.json()
    timing = re.sub(r"\d+\.\d", "1.0", answer.headers["server-timing"]).split(", ")
    assert (timing[0], timing[-1]) == ("orientation;dur=1.0", "second;dur=1.0")
    assert {*timing[1:-1]} == {f"{reader};dur=1.0" for reader in READERS}
    assert ask(client) == LABELLED


def test_a_stage_is_asked_once_for_all_of_its_rows(
    client: httpx.Client, services: Services
) -> None:
    rows, _ = unseen_rows()
    before = calls_of(services)
    body = json.dumps({"data": rows[:200].tolist()}).encode()
    stages = ask(client, "/predict", body)["stages"]
    assert {name for taken in stages for name in taken} == {*STAGES}
    after = calls_of(services)
    assert {name: after[name] - before[name] for name in STAGES} == dict.fromkeys(STAGES, 1)


def test_both_readers_are_asked_at_once(client: httpx.Client, services: Services) -> None:
    """While one of them hangs, the other one is asked, whichever of them is the first."""
    for hung, other in (READERS, READERS[::-1]):
        before = calls_of(services)[other]
        with ThreadPoolExecutor() as pool, suspended(services[hung]):
            asked = pool.submit(ask, client)
            url = f"{services[other].url}/calls"
            wait_until(partial(is_above, url, before), f"a call of {other}")
            assert not asked.done()
            os.kill(services[hung].pid, signal.SIGCONT)
            assert asked.result() == LABELLED


def is_above(url: str, count: int) -> bool:
    calls: int = httpx.get(url).json()
    return calls > count


# --- partial answers ------------------------------------------------------------------------------


def test_what_needs_a_stage_is_partial_while_it_is_gone() -> None:
    with (
        run_services() as services,
        run_proxy(urls_of(services), SHORT) as server,
        client_of(server) as client,
    ):
        whole = ask(client, "/predict")
        with suspended(services["second"]):
            late = {"second": "no answer by the deadline"}
            answer = ask(client, "/predict")
            assert (answer["stages"], answer["missing"]) == ([PATHS[0], PATHS[1][:2]], late)
            # What the reader has said, which is not sure of it.
            assert answer["prediction"][0] == whole["prediction"][0]
            assert 0.1 < max(answer["prediction"][1]) < 0.9
            assert client.get("/health/all").json()["second"] == late["second"]
            assert client.get("/ready").status_code == 200
        wait_until(lambda: bool(ask(client) == LABELLED), "the stage to go on")
        services["turned"].kill()
        gone = {"turned": "out of reach"}
        expected = {"prediction": ["4", None], "stages": [PATHS[0], ["orientation"]]}
        assert ask(client) == expected | {"missing": gone}
        assert ask(client, "/predict")["prediction"][1] is None
        assert client.get("/ready").status_code == 200
        services["orientation"].kill()
        refused = client.post("/predict", content=BODY)
        missing = {"orientation": "out of reach"}
        detail = "no row can be read without orientation"
        assert (refused.status_code, refused.json()) == (
            503,
            {"detail": detail, "missing": missing},
        )
        assert refused.headers["retry-after"] == "1"
        assert re.fullmatch(
            r'orientation;desc="no answer";dur=\d+\.\d', refused.headers["server-timing"]
        )
        ready = client.get("/ready")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
        ports = [int(services[name].url.rpartition(":")[2]) for name in ("orientation", "turned")]
        with run_service("orientation", port=ports[0]), run_service("turned", port=ports[1]):
            assert ask(client) == LABELLED


def test_a_hung_first_stage_costs_the_deadline_and_no_other_is_asked(services: Services) -> None:
    others = {name: services[name] for name in STAGES if name != "orientation"}
    before = calls_of(others)
    with (
        run_proxy(urls_of(services), SHORT) as server,
        client_of(server) as client,
        suspended(services["orientation"]),
    ):
        refused = client.post("/predict", content=BODY)
        assert calls_of(others) == before
    assert refused.status_code == 503
    assert refused.json()["missing"] == {"orientation": "no answer by the deadline"}


def test_after_the_deadline_no_stage_is_asked() -> None:
    began = False

    async def call() -> Reply:
        nonlocal began
        began = True
        return Reply("second", None, "", 0.0)

    async def late() -> Reply:
        loop = asyncio.get_running_loop()
        return await within(loop.time(), Service("second", "", 10, 1), call())

    assert asyncio.run(late()).reason == "not asked: the deadline had passed"
    assert not began


def test_a_stage_that_does_not_fit_is_refused_by_name(services: Services) -> None:
    urls = urls_of(services)
    for wrong, reason in (
        ({"orientation": urls["upright"]}, "10 probabilities for 2 labels"),
        ({"orientation": urls["second"]}, "responded with status 422"),
    ):
        with run_proxy(urls | wrong, PATIENT) as server, client_of(server) as client:
            refused = client.post("/predict", content=BODY)
        assert (refused.status_code, refused.json()["missing"]) == (503, {"orientation": reason})


def test_a_model_of_another_width_is_not_served() -> None:
    reason = re.escape("models/second: sample has no rows of 64 numbers")
    with (
        pytest.raises(ServerError, match=reason),
        run_service("second", {"FEATURES": "64"}),
    ):
        pytest.fail("it has started")


def test_bad_input_reaches_no_stage(client: httpx.Client, services: Services) -> None:
    before = calls_of(services)
    wide, high = [0] * 75, [17] * 64
    bodies = [b"", b'{"data": []}', *(f'{{"data": [{row}]}}'.encode() for row in (wide, high))]
    for body in bodies:
        for path in ("/predict", "/predict/label"):
            assert client.post(path, content=body).status_code == 422
    assert calls_of(services) == before


def test_a_request_under_way_is_answered_after_sigterm(services: Services) -> None:
    before = calls_of(services)["upright"]
    with (
        run_proxy(urls_of(services), PATIENT) as server,
        client_of(server) as client,
        ThreadPoolExecutor() as pool,
        suspended(services["turned"]),
    ):
        asked = pool.submit(ask, client)
        wait_until(partial(is_above, f"{services['upright'].url}/calls", before), "a reader")
        server.terminate()
        wait_until(lambda: "Shutting down" in server.log.read_text("utf-8"), "the proxy to stop")
        os.kill(services["turned"].pid, signal.SIGCONT)
        assert asked.result() == LABELLED
        server.wait(30)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("MIN_CONFIDENCE", "-0.1", "greater than or equal to 0"),
        ("SERVICES", '{"orientation": "http://a"}', "services.upright"),
        ("SERVICES", '{"third": "http://a"}', "services.third"),
    ],
)
def test_a_wrong_setting_stops_the_start(variable: str, value: str, reason: str) -> None:
    with (
        pytest.raises(ServerError, match=re.escape(reason)),
        run_proxy(NOWHERE, {variable: value}),
    ):
        pytest.fail("it has started")


# --- spans ----------------------------------------------------------------------------------------


def test_the_stages_of_a_request_are_one_trace(client: httpx.Client, receiver: Receiver) -> None:
    trace_id = client.post("/predict", content=BODY).headers["x-trace-id"]
    wait_until(lambda: len(receiver.traces().get(trace_id, [])) == 5, "five spans")
    root, *others = receiver.traces()[trace_id]
    assert (root.service, root.name, root.parent_id) == ("proxy", "proxy /predict", "")
    assert [span.service for span in others[:: len(others) - 1]] == ["orientation", "second"]
    assert {span.service for span in others} == {*STAGES}
    assert {span.parent_id for span in others} == {root.span_id}


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([("proxy", 0, 9), ("orientation", 1, 2), ("turned", 2, 3), ("second", 4, 5)], True),
        ([("orientation", 1, 2), ("upright", 2, 3)], True),
        ([("orientation", 1, 3), ("upright", 2, 4)], False),
        ([("upright", 1, 2), ("orientation", 2, 3)], False),
        ([("orientation", 1, 2), ("upright", 2, 3), ("turned", 3, 4)], False),
        ([("orientation", 1, 2)], False),
    ],
)
def test_stages_are_in_order_only_one_after_the_other(
    spans: list[tuple[str, int, int]], expected: bool
) -> None:
    trace = [Span(name, name, "a", "b", "c", start, end, {}) for name, start, end in spans]
    assert is_in_order(trace) == expected


# --- training -------------------------------------------------------------------------------------


def test_proxy_and_models_agree_on_stages_labels_and_widths() -> None:
    assert [*LABELS] == STAGES
    assert [*READERS_OF_PROXY] == READERS
    for stage, labels in LABELS.items():
        described = json.loads((HERE / f"models/{stage}/metadata.json").read_bytes())
        assert len(described["labels"]) == labels
        assert described["input"]["shape"] == [None, WIDTHS[stage]]
        if stage == "orientation":
            assert described["labels"] == READERS


def test_a_turned_image_is_upside_down_and_mirrored() -> None:
    image = np.arange(64).reshape(8, 8)
    assert turned(image.reshape(1, -1)).reshape(8, 8).tolist() == np.rot90(image, 2).tolist()


def test_second_is_trained_on_answers_to_images_that_the_others_have_not_seen() -> None:
    """With labels that mean nothing, only a model that has seen an image knows its label."""
    x = load().x_train[:150]
    y = np.random.default_rng(0).integers(0, 10, len(x))
    images = Split(x, y, x, y)
    digits = np.tile(y, 2)

    def known(rows: np.ndarray) -> float:
        return float((rows[:, 65:].argmax(axis=1) == digits).mean())

    rows = out_of_fold(images)
    assert rows.shape == (300, 75)
    assert rows[:, :64].tolist() == both_ways(x).tolist()
    assert known(rows) < 0.2
    assert known(answered(fit_earlier(images), both_ways(x))) > 0.4


# --- the claim ------------------------------------------------------------------------------------


def test_the_counts_hold_and_without_each_mechanism_they_do_not() -> None:
    rows = unseen_rows()[0][:60]
    targets = targets_of(rows)
    counts, control = count_all(rows, bad=20)
    met = {name: MEETS[sign](counts[name], bound) for name, (sign, bound) in targets.items()}
    assert met == dict.fromkeys(targets, True), counts
    without = {
        name: MEETS[targets[name][0]](count, targets[name][1]) for name, count in control.items()
    }
    assert without == dict.fromkeys(control, False), control
    # A chain that raises answers only what needs no second model.
    assert control["answered_without_second"] == counts["whole_without_second"]
    assert targets.keys() - control.keys() == {
        "asked_orientation",
        "asked_second_with_threshold_0",
        "whole_without_second",
        "calls_for_bad_requests",
    }
