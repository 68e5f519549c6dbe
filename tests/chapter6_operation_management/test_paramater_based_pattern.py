"""paramater_based_pattern: real models behind a real proxy, and files of every kind."""

import gzip
import subprocess
import sys
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import psutil
import pytest
import yaml
from sklearn.datasets import load_iris

from chapter6_operation_management.paramater_based_pattern.app.parameters import (
    MAX_BYTES,
    Followed,
    ParametersError,
    read,
)
from chapter6_operation_management.paramater_based_pattern.app.settings import Settings
from chapter6_operation_management.paramater_based_pattern.measure.__main__ import (
    QUICK_REQUESTS,
)
from chapter6_operation_management.paramater_based_pattern.measure.counts import LOOK_SECONDS
from chapter6_operation_management.paramater_based_pattern.measure.processes import (
    HERE,
    MODELS,
    PACKAGE,
    ROOT,
    SHIPPED,
    run_model,
    run_models,
    run_proxy,
    urls_of,
    wait_for,
    write,
)
from chapter6_operation_management.paramater_based_pattern.measure.rules import scripted
from chapter6_operation_management.paramater_based_pattern.train.iris import LABELS
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError, suspended, wait_until
from tools.mesh.proxy import fetch

PATIENCE_SECONDS = 60.0
SAMPLE = {"data": [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]}
# What the shipped parameters make of its two rows.
SETOSA_ALONE, NOTHING = {"setosa": 1, "versicolor": 0}, {"setosa": 0, "versicolor": 0}
TEXT = SHIPPED.read_text("utf-8")


@pytest.fixture(scope="module", autouse=True)
def model() -> None:
    """Trains the models unless they are there already."""
    if not (HERE / "models/metadata.json").exists():
        subprocess.run([sys.executable, "-m", "train"], cwd=HERE, check=True)


@pytest.fixture(scope="module")
def models(model: None) -> Iterator[dict[str, Server]]:
    with run_models() as running:
        yield running


class Proxy:
    """A running proxy, and the file that it follows."""

    def __init__(self, server: Server, file: Path, client: httpx.Client) -> None:
        self.server, self.file, self.client = server, file, client

    def change(self, **changes: Any) -> str:
        version = write(self.file, **changes)
        wait_for(self.server, version)
        return version

    def decide(self, data: list[list[float]] = SAMPLE["data"]) -> dict[str, Any]:
        answer = self.client.post("/predict", json={"data": data})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def parameters(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/parameters").json()
        return found


@contextmanager
def proxy_of(urls: dict[str, str], file: Path) -> Iterator[Proxy]:
    with (
        run_proxy(urls, file, LOOK_SECONDS=LOOK_SECONDS) as server,
        httpx.Client(
            base_url=server.url,
            timeout=PATIENCE_SECONDS,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        ) as client,
    ):
        yield Proxy(server, file, client)


@pytest.fixture(scope="module")
def shared_proxy(
    models: dict[str, Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    file = tmp_path_factory.mktemp("parameters") / "parameters.yml"
    write(file)
    with proxy_of(urls_of(models), file) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared_proxy: Proxy) -> Proxy:
    shared_proxy.change()
    return shared_proxy


def calls_of(models: dict[str, Server]) -> dict[str, int]:
    return {name: fetch(f"{server.url}/calls") for name, server in models.items()}


def is_new(error: Callable[[], str | None], known: Container[str | None]) -> bool:
    return error() not in known


def is_called(model: Server, times: int) -> bool:
    return bool(fetch(f"{model.url}/calls") == times)


# --- decisions ------------------------------------------------------------------------------------


def test_every_row_is_decided_by_the_probability_and_the_threshold(proxy: Proxy) -> None:
    rows = load_iris().data.astype(np.float32)
    thresholds = {"setosa": 0.2, "versicolor": 0.85, "virginica": 0.5}
    changes = {name: {"threshold": bound, "active": True} for name, bound in thresholds.items()}
    version = proxy.change(**changes)
    expected = {}
    for name, bound in thresholds.items():
        session = onnxruntime.InferenceSession(MODELS / name / "model.onnx")
        (probabilities,) = session.run(["probabilities"], {"X": rows})
        expected[name] = (probabilities[:, 1] >= bound).astype(int).tolist()
    found = proxy.decide(rows.tolist())
    assert {name: [row[name] for row in found["prediction"]] for name in LABELS} == expected
    assert (found["parameters"], found["fallback"]) == (version, [])


def test_the_shipped_parameters_are_those_of_the_book(models: dict[str, Server]) -> None:
    with proxy_of(urls_of(models), SHIPPED) as proxy:
        found = proxy.decide()
        assert found["prediction"] == [SETOSA_ALONE, NOTHING]
        assert found["fallback"] == ["virginica"]
        first = {**found, "prediction": found["prediction"][:1]}
        assert proxy.client.get("/predict/get/test").json() == first
        assert proxy.client.get("/predict/post/test").json() == first
        assert proxy.client.get("/health/all").json() == dict.fromkeys(LABELS, "ok")
        values = proxy.parameters()["values"]
        assert values["stop"] is False
        assert values["default"]["threshold"] == 0.95
        of_models = values["models"].values()
        assert [model["threshold"] for model in of_models] == [0.9, 0.85, 0.95]
        assert [model["active"] for model in of_models] == [True, True, False]
        described = proxy.client.get("/metadata").json()["models"]
    for name, server in models.items():
        assert described[name]["sha256"] == fetch(f"{server.url}/metadata")["sha256"]


def test_stop_asks_no_model_and_every_model_gets_its_fallback(
    proxy: Proxy, models: dict[str, Server]
) -> None:
    fallbacks = {"setosa": {"fallback": 1}, "versicolor": {"fallback": None}}
    proxy.change(stop=True, **fallbacks)
    before = calls_of(models)
    found = proxy.decide()
    assert calls_of(models) == before
    assert found["prediction"] == [{"setosa": 1}] * 2
    assert found["fallback"] == LABELS
    proxy.change(stop=True, **{name: {"fallback": None} for name in LABELS})
    assert proxy.decide()["prediction"] == [{}, {}]
    proxy.change(**fallbacks)
    assert proxy.decide()["prediction"] == [SETOSA_ALONE, NOTHING]


# --- models that fail -----------------------------------------------------------------------------


def test_a_model_that_is_killed_costs_its_own_decision_only(
    models: dict[str, Server], tmp_path: Path
) -> None:
    file = tmp_path / "parameters.yml"
    write(file, versicolor={"fallback": 1})
    with run_model("versicolor") as mortal:
        urls = {**urls_of(models), "versicolor": mortal.url}
        with proxy_of(urls, file) as proxy:
            assert proxy.decide()["fallback"] == ["virginica"]
            mortal.kill()
            found = proxy.decide()
            assert found["prediction"] == [
                {"setosa": 1, "versicolor": 1},
                {"setosa": 0, "versicolor": 1},
            ]
            assert found["fallback"] == ["versicolor", "virginica"]
            assert proxy.client.get("/ready").status_code == 200
            health = proxy.client.get("/health/all").json()
            assert health == {"setosa": "ok", "versicolor": "ng", "virginica": "ok"}
            reason = "503 versicolor is out of reach, so its fallback"
            log = proxy.server.log
            wait_until(lambda: reason in log.read_text("utf-8"), "the log to say so")
            with run_model("versicolor", port=int(mortal.url.rpartition(":")[2])):
                assert proxy.decide()["fallback"] == ["virginica"]


def test_a_model_that_hangs_takes_no_connection_from_the_others(
    proxy: Proxy, models: dict[str, Server]
) -> None:
    """More requests wait for it than a pool of aiohttp has connections by default, which is 100."""
    count, before = 120, calls_of(models)["setosa"]
    asked = {name: models[name] for name in ("setosa", "versicolor")}

    def are_waiting() -> bool:
        ports = {int(server.url.rpartition(":")[2]) for server in asked.values()}
        open_ones = psutil.Process(proxy.server.pid).net_connections()
        return sum(bool(each.raddr) and each.raddr.port in ports for each in open_ones) >= 100

    with ThreadPoolExecutor(count) as pool, suspended(asked["versicolor"]):
        with suspended(asked["setosa"]):
            answers = [pool.submit(proxy.decide) for _ in range(count)]
            wait_until(are_waiting, "the requests to wait for the models")
        wait_until(partial(is_called, asked["setosa"], before + count), "all calls of setosa", 30)
    for answer in answers:
        assert answer.result()["prediction"] == [SETOSA_ALONE, NOTHING]
        assert answer.result()["fallback"] == ["virginica"]


def test_a_model_that_hangs_is_its_fallback_at_its_deadline(
    proxy: Proxy, models: dict[str, Server]
) -> None:
    proxy.change(versicolor={"timeout_seconds": 0.2, "fallback": 1})
    with suspended(models["versicolor"]):
        found = proxy.decide()
    assert [row["versicolor"] for row in found["prediction"]] == [1, 1]
    assert [row["setosa"] for row in found["prediction"]] == [1, 0]
    assert found["fallback"] == ["versicolor", "virginica"]
    reason = "503 versicolor is late, so its fallback"
    wait_until(lambda: reason in proxy.server.log.read_text("utf-8"), "the log to say so")


HTML = b"<html>502 Bad Gateway</html>"
RIGHT = b'{"prediction":[[0.0,1.0],[1.0,0.0]]}'
NONSENSE = {
    "a 404": b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}",
    "a redirect": b"HTTP/1.1 302 Found\r\nlocation: /predict\r\ncontent-length: 0\r\n\r\n",
    "a refusal": b"HTTP/1.1 422 Unprocessable Entity\r\ncontent-length: 2\r\n\r\n{}",
} | {
    name: b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content)
    for name, content in {
        "HTML": HTML,
        "nothing": b"",
        "another object": b'{"labels":["1"]}',
        "labels": b'{"prediction":["setosa","other"]}',
        "NaN": b'{"prediction":[[0.0,NaN],[1.0,0.0]]}',
        "texts": b'{"prediction":[["a","b"],["c","d"]]}',
        "one row": b'{"prediction":[[0.0,1.0]]}',
        "three columns": b'{"prediction":[[0.0,0.5,0.5],[1.0,0.0,0.0]]}',
        "a column": b'{"prediction":[[1.0],[0.0]]}',
        "half a JSON": RIGHT[:-3],
        "gzip": gzip.compress(RIGHT),
        "too much": b" " * 1_500_000 + RIGHT,
    }.items()
}


def test_nonsense_of_a_model_is_its_fallback_and_not_asked_for_again(
    models: dict[str, Server], tmp_path: Path
) -> None:
    file = tmp_path / "parameters.yml"
    write(file, versicolor={"attempts": 3, "fallback": 1})
    with scripted() as server, proxy_of({**urls_of(models), "versicolor": server.url}, file) as own:
        for name, server.sends in NONSENSE.items():
            server.calls = 0
            found = own.decide()
            assert found["fallback"] == ["versicolor", "virginica"], name
            assert [row["versicolor"] for row in found["prediction"]] == [1, 1], name
            assert [row["setosa"] for row in found["prediction"]] == [1, 0], name
            assert server.calls == 1, name
        content = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(RIGHT), RIGHT)
        server.sends = content
        assert own.decide()["fallback"] == ["virginica"]


# --- files ----------------------------------------------------------------------------------------


def changed(old: str, new: str) -> bytes:
    assert old in TEXT
    return TEXT.replace(old, new, 1).encode()


LAUGHS = "\n".join(
    [
        "a0: &a0 [1, 1]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
    ]
)
SETOSA = "setosa: {active: true, threshold: 0.90}"
# A file that is wrong, and what the error says of it.
WRONG: dict[str, tuple[bytes, str]] = {
    "a threshold above 1": (changed("0.90", "1.01"), "models.setosa.threshold: "),
    "a threshold below 0": (changed("0.90", "-0.01"), "models.setosa.threshold: "),
    "a threshold NaN": (changed("0.90", ".nan"), "models.setosa.threshold: "),
    "an infinite threshold": (changed("0.90", ".inf"), "models.setosa.threshold: "),
    "a threshold as text": (changed("0.90", '"0.90"'), "models.setosa.threshold: "),
    "a threshold true": (changed("0.90", "true"), "models.setosa.threshold: "),
    "no threshold": (changed("0.90", ""), "models.setosa.threshold: "),
    "a threshold by default": (changed("0.95", "95"), "default.threshold: "),
    "an unknown model": (changed("setosa:", "satosa:"), "models.satosa: there is no such model"),
    "a model twice": (changed("versicolor:", "setosa:"), "setosa is there 2 times"),
    "a model that is missing": (changed(SETOSA, ""), "models.setosa: it is missing"),
    "a model without anything": (changed(SETOSA, "setosa:"), "models.setosa: "),
    "a model that is a list": (changed(SETOSA, "setosa: [true]"), "models.setosa: "),
    "an unknown key of a model": (changed("{active", "{activ"), "models.setosa.activ: "),
    "an unknown key": (changed("stop:", "halt: true\nstop:"), "halt: "),
    "stop twice": (changed("stop:", "stop: true\nstop:"), "stop is there 2 times"),
    "no stop": (changed("stop: false", ""), "stop: "),
    "a stop as a number": (changed("stop: false", "stop: 1"), "stop: "),
    "an active as a number": (changed("{active: true", "{active: 1"), "models.setosa.active: "),
    "negative attempts": (changed("attempts: 2", "attempts: -1"), "default.attempts: "),
    "no attempts": (changed("attempts: 2", "attempts: 0"), "default.attempts: "),
    "too many attempts": (changed("attempts: 2", "attempts: 1000"), "default.attempts: "),
    "half an attempt": (changed("attempts: 2", "attempts: 1.5"), "default.attempts: "),
    "no time": (changed("seconds: 1.0", "seconds: 0"), "default.timeout_seconds: "),
    "endless time": (changed("seconds: 1.0", "seconds: .inf"), "default.timeout_seconds: "),
    "a fallback of 2": (changed("fallback: 0", "fallback: 2"), "default.fallback: "),
    "a fallback true": (changed("fallback: 0", "fallback: true"), "default.fallback: "),
    "a default that is incomplete": (changed("  fallback: 0", ""), "default.fallback: "),
    "models as a list": (b"stop: false\ndefault: {}\nmodels: []\n", ""),
    "an empty file": (b"", "dictionary"),
    "only a comment": (b"# nothing\n", "dictionary"),
    "a list": (b"- stop\n", "dictionary"),
    "two documents": (TEXT.encode() + b"---\nstop: true\n", "single document"),
    "rubbish": (b"{{{", "flow"),
    "tabs": (changed("  attempts", "\tattempts"), "cannot start any token"),
    "no text": (b"\xff\xfe\x00\x01", ""),
    "a number without digits": (changed("attempts: 2", 'attempts: !!int ""'), "index out of range"),
    "an object of Python": (b"!!python/object/apply:os.system ['true']\n", "constructor"),
    "a thirteenth month": (b"stop: 2026-13-01\n", "month"),
    "4,000 levels": (b"[" * 4_000, "recursion"),
    "anchors for 9 ** 11 values": (LAUGHS.encode(), "stop: "),
    "an anchor that refers to itself": (b"&a [*a]\n", ""),
    "too large": (TEXT.encode() + b"#" * MAX_BYTES, f"larger than {MAX_BYTES} bytes"),
}


@pytest.mark.parametrize(("content", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_by_its_key(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "parameters.yml"
    file.write_bytes(content)
    with pytest.raises(ParametersError) as refused:
        read(file, LABELS)
    assert reason in str(refused.value)
    assert 0 < len(str(refused.value)) <= 400


def test_no_beginning_of_the_shipped_file_is_accepted(tmp_path: Path) -> None:
    """So a reader never takes a file that is still being written for a whole one."""
    file, whole = tmp_path / "parameters.yml", TEXT.rstrip("\n").encode()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(ParametersError):
            read(file, LABELS)
    file.write_bytes(whole)
    assert read(file, LABELS).values == read(SHIPPED, LABELS).values


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yml", tmp_path):
        with pytest.raises(ParametersError, match=str(path)):
            read(path, LABELS)


def test_at_the_start_a_wrong_file_is_refused(tmp_path: Path, models: dict[str, Server]) -> None:
    file = tmp_path / "parameters.yml"
    file.write_bytes(WRONG["a threshold above 1"][0])
    with (
        pytest.raises(ServerError, match=r"models\.setosa\.threshold: .*less than or equal to 1"),
        run_proxy(urls_of(models), file),
    ):
        pass


def test_later_the_last_right_version_stays_in_force(proxy: Proxy) -> None:
    version = proxy.change(setosa={"threshold": 0.5})
    before, log = proxy.decide(), proxy.server.log
    lines = log.read_text("utf-8").count("stays in force")

    def error() -> str | None:
        found: str | None = proxy.parameters()["error"]
        return found

    wrong = (b"", b"{{{", WRONG["a threshold above 1"][0], TEXT.encode()[:300])
    for number, content in enumerate(wrong, 1):
        known = (error(), None)
        proxy.file.write_bytes(content)
        wait_until(partial(is_new, error, known), "the error")
        assert proxy.decide() == before
        assert log.read_text("utf-8").count("stays in force") == lines + number
    proxy.file.unlink()
    wait_until(lambda: "No such file" in str(error()), "the error")
    assert proxy.decide() == before
    assert proxy.parameters()["version"] == version
    since = proxy.parameters()["since"]
    assert write(proxy.file, setosa={"threshold": 0.5}) == version
    wait_until(lambda: error() is None, "the same version")
    assert proxy.parameters()["since"] == since
    assert proxy.change(setosa={"threshold": 0.6}) != version
    assert proxy.parameters()["since"] > since


def test_an_error_is_logged_once_however_often_the_file_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "parameters.yml"
    write(file)
    followed = Followed(file, LABELS)
    file.write_bytes(b"{{{")
    for _ in range(3):
        followed.look()
    assert len(caplog.records) == 1
    assert str(followed.in_force.error) in caplog.text


@pytest.mark.parametrize("way", ["sed", "rename", "in place", "link"])
def test_a_change_is_followed_however_the_file_is_written(
    tmp_path: Path, models: dict[str, Server], way: str
) -> None:
    file, new = tmp_path / "parameters.yml", changed("0.90", "0.91")
    if way == "link":
        # As the kubelet does: the file is a link through `..data`, which is replaced.
        for name, content in (("old", TEXT.encode()), ("new", new)):
            (tmp_path / name).mkdir()
            (tmp_path / name / file.name).write_bytes(content)
        (tmp_path / "..data").symlink_to("old")
        file.symlink_to(f"..data/{file.name}")
    else:
        file.write_bytes(TEXT.encode())
    followed = Followed(file, LABELS)
    match way:
        case "sed":
            subprocess.run(["sed", "-i.old", "s/0.90/0.91/", str(file)], check=True)
        case "rename":
            file.with_suffix(".new").write_bytes(new)
            file.with_suffix(".new").replace(file)
        case "in place":
            file.write_bytes(new)
        case "link":
            (tmp_path / "..new").symlink_to("new")
            (tmp_path / "..new").replace(tmp_path / "..data")
    followed.look()
    assert followed.in_force.values.models["setosa"].threshold == 0.91


# --- the programs and the manifests ---------------------------------------------------------------


def test_the_proxy_needs_none_of_the_libraries_of_a_model() -> None:
    code = (
        f"import sys, {PACKAGE}.app.main\n"
        "print({'numpy', 'onnxruntime', 'sklearn'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout == "set()\n"


def test_to_look_all_the_time_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOK_SECONDS", "0")
    with pytest.raises(ValueError, match="greater than 0"):
        Settings()


def test_the_config_map_is_the_file() -> None:
    config_map = yaml.safe_load((HERE / "manifests/config_map.yml").read_text("utf-8"))
    assert config_map["data"] == {SHIPPED.name: TEXT}


def test_the_config_map_is_mounted_as_a_whole() -> None:
    """With subPath, a pod would keep the file that it has started with."""
    deployment = yaml.safe_load((HERE / "manifests/deployment.yml").read_text("utf-8"))
    pod = deployment["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "parameters", "configMap": {"name": "parameters"}}]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    assert "subPath" not in mount
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert variables["PARAMETERS_FILE"] == f"{mount['mountPath']}/{SHIPPED.name}"


# --- the measurement ------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_controls_do_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", f"{PACKAGE}.measure", "--quick"]
    ended = subprocess.run(
        [*command, "--output", str(tmp_path / "measure")], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    results = load_results(tmp_path)
    assert results.counts.pop("versions_seen") > 1
    assert results.counts == {
        "calls_of_a_model_that_is_off": 0,
        "fallbacks": QUICK_REQUESTS,
        "decisions_logged": 100,
        "decisions_without_version": 0,
        "failed_during_100_changes": 0,
        "answers_of_another_version": 0,
        "digests_changed": 0,
        "threshold_inversions": 0,
        "precedence_wrong": 0,
        "precedence_cases": 72,
        "attempts_wrong": 0,
    }
    control = results.control
    assert control.pop("failed_during_100_changes") > 0
    assert control.pop("answers_of_another_version") > 0
    assert control == {
        "calls_of_a_model_that_is_off": QUICK_REQUESTS,
        "fallbacks": QUICK_REQUESTS,
        "decisions_logged": 100,
        "decisions_without_version": 100,
        "digests_changed": 3,
        "threshold_inversions": 23,
        "precedence_wrong": 16,
        # With two attempts and with three, a model that fails and one that fails once.
        "attempts_wrong": 4,
    }
