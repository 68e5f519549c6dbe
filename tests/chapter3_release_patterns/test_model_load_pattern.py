"""model_load_pattern: one image serves any model, and only the released one is ever ready."""

import hashlib
import http.server
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import onnxruntime
import pytest
from pydantic import ValidationError
from sklearn.datasets import load_iris

from chapter3_release_patterns.model_load_pattern.app.load import LoadError, load
from chapter3_release_patterns.model_load_pattern.app.settings import Settings
from chapter3_release_patterns.model_load_pattern.measure.failures import (
    ALL_FAILURES,
    Failure,
    failures,
    release,
)
from chapter3_release_patterns.model_load_pattern.measure.images import (
    digest_with_the_model,
    image_of,
    network_with_store,
    serving,
)
from chapter3_release_patterns.model_load_pattern.measure.processes import (
    INIT_STEP,
    ROOT,
    replica,
    run_load,
    run_store,
)
from chapter3_release_patterns.model_load_pattern.train.__main__ import main as train_main
from chapter3_release_patterns.model_load_pattern.train.artifact import write_artifact
from tools.measure.docker import ask
from tools.measure.results import load as load_results
from tools.measure.server import Server, ServerError, answer_of, free_port, wait_until

PATTERN = ROOT / "chapter3_release_patterns/model_load_pattern"
MODELS = ("iris_svc", "iris_logistic", "iris_discriminant")
ROWS = load_iris().data.astype(np.float32)
BODY = {"data": ROWS.tolist()}
# What `ulimit -f 1` lets a file have, in a shell that is called sh.
LIMIT_BYTES = 512


def train(directory: Path) -> None:
    command = [sys.executable, "-m", "train", "--output", str(directory)]
    subprocess.run(command, cwd=PATTERN, check=True, capture_output=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    train(directory)
    return directory


@pytest.fixture(scope="module")
def store(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(trained, tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture(scope="module")
def url(store: Path) -> Iterator[str]:
    with run_store(store) as url:
        yield url


def metadata_of(store: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / name / "1/metadata.json").read_bytes())
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_in(directory: Path) -> dict[str, bytes]:
    """Everything in a model directory, whatever it is called."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def artifact(store: Path, name: str) -> dict[str, bytes]:
    return files_in(store / name / "1")


def predictions(server: Server) -> list[list[float]]:
    answer: list[list[float]] = httpx.post(f"{server.url}/predict", json=BODY).json()["prediction"]
    return answer


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], str]:
    """Runs the init step in this process, and returns why it does not load what it is told.

    That its own process says so in a line is shown by what was loaded before.
    """

    def reason(told: dict[str, str]) -> str:
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        with pytest.raises((LoadError, ValidationError)) as refused:
            load(Settings())
        return str(refused.value)

    return reason


Refusal = Callable[[dict[str, str]], str]


# --- one server, any model ------------------------------------------------------------------------


def test_a_loaded_model_is_served_as_the_model_itself_predicts(
    store: Path, url: str, tmp_path: Path
) -> None:
    name = "iris_discriminant"
    told = {**release(store, url, name), "MODEL_DIRECTORY": str(tmp_path)}
    session = onnxruntime.InferenceSession(store / name / "1/model.onnx")
    expected = session.run(["probabilities"], {"X": ROWS})[0]
    with replica(told) as server:
        assert httpx.get(f"{server.url}/metadata").json() == metadata_of(store, name)
        np.testing.assert_allclose(predictions(server), expected, rtol=0, atol=1e-6)
        labels = httpx.post(f"{server.url}/predict/label", json=BODY).json()["prediction"]
    names = load_iris().target_names
    assert labels == [names[index] for index in expected.argmax(axis=1)]


def test_the_three_models_predict_differently(store: Path) -> None:
    sessions = [onnxruntime.InferenceSession(store / name / "1/model.onnx") for name in MODELS]
    svc, logistic, discriminant = (s.run(["probabilities"], {"X": ROWS})[0] for s in sessions)
    for one, other in [(svc, logistic), (svc, discriminant), (logistic, discriminant)]:
        assert np.abs(one - other).max() > 0.1


def test_training_twice_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    train(tmp_path)
    for path in trained.rglob("*.*"):
        assert (tmp_path / path.relative_to(trained)).read_bytes() == path.read_bytes()


def test_training_into_a_place_that_cannot_be_written_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--output", "/sys/models"])
    with pytest.raises(SystemExit) as ended:
        train_main()
    assert str(ended.value.code).startswith("error: cannot write into /sys/models: ")
    assert "\n" not in str(ended.value.code)


def test_the_release_of_the_manifests_is_the_model_that_training_gives(trained: Path) -> None:
    lines = (PATTERN / "manifests/release.env").read_text().splitlines()
    released = dict(line.split("=") for line in lines if not line.startswith("#"))
    assert released["MODEL_URI"] == "http://store:8001/iris_svc/1/model.onnx"
    assert released["MODEL_SHA256"] == sha256(trained / "iris_svc/1/model.onnx")


# --- every way to name a model --------------------------------------------------------------------


def test_the_metadata_can_be_named_in_place_of_the_model(
    store: Path, url: str, tmp_path: Path
) -> None:
    told = {
        "MODEL_URI": f"{url}/iris_svc/1/metadata.json",
        "MODEL_SHA256": sha256(store / "iris_svc/1/metadata.json").upper(),
        "MODEL_DIRECTORY": str(tmp_path),
    }
    loaded = run_load(told)
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


def test_labels_that_were_exchanged_are_noticed_where_the_metadata_is_named(
    store: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(store / "iris_svc", tmp_path / "store/iris_svc")
    metadata = copy / "1/metadata.json"
    named = {
        name: {"MODEL_URI": f"file://{copy}/1/{name}", "MODEL_SHA256": sha256(copy / "1" / name)}
        for name in ("model.onnx", "metadata.json")
    }
    metadata.write_text(metadata.read_text().replace("setosa", "virginica"))
    directory = {"MODEL_DIRECTORY": str(tmp_path / "model")}
    refused = run_load(named["metadata.json"] | directory)
    assert refused.returncode == 1
    assert "metadata.json: the SHA-256 is" in refused.stderr
    # The model's digest says nothing about them, which is why the metadata can be named.
    assert run_load(named["model.onnx"] | directory).returncode == 0


@pytest.mark.parametrize("is_absolute", [False, True])
def test_the_champion_of_the_registry_is_loaded(
    store: Path, url: str, tmp_path: Path, is_absolute: bool
) -> None:
    champion = json.loads((store / "iris_logistic/champion.json").read_bytes())
    if is_absolute:
        # As model_db has it, whose artifacts are anywhere.
        champion["artifact_file_paths"]["onnx"] = f"file://{store}/iris_logistic/1/model.onnx"
    (store / "champion.json").write_text(json.dumps(champion | {"experiment_id": "1"}))
    address = "champion.json" if is_absolute else "iris_logistic/champion.json"
    told = {"CHAMPION_URL": f"{url}/{address}", "MODEL_DIRECTORY": str(tmp_path / "model")}
    loaded = run_load(told)
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path / "model") == artifact(store, "iris_logistic")


@contextmanager
def s3_server(directory: Path, *options: str) -> Iterator[str]:
    """Runs rclone's S3 server, whose buckets are the directories in this one."""
    url = f"http://127.0.0.1:{free_port()}"
    rclone = Path(sys.executable).with_name("rclone")
    address = ["--addr", url.removeprefix("http://"), "--config", os.devnull]
    command = [str(rclone), "serve", "s3", *address, *options, str(directory)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            # Whatever the answer is: without a key it is a 403.
            wait_until(lambda: answer_of(url).isdecimal(), "the S3 server")
            yield url
        finally:
            process.kill()


KEYS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "for-this-test-only"}


@pytest.fixture(scope="module")
def s3(store: Path) -> Iterator[dict[str, str]]:
    """The environment in which the bucket `store` holds the models."""
    key = ",".join(KEYS.values())
    with s3_server(store.parent, "--auth-key", key) as url:
        yield KEYS | {"AWS_ENDPOINT": url, "AWS_REGION": "us-east-1"}


@pytest.mark.parametrize("asks_for_the_champion", [False, True])
def test_a_model_is_loaded_from_an_s3_server_that_checks_signatures(
    store: Path, s3: dict[str, str], tmp_path: Path, asks_for_the_champion: bool
) -> None:
    told = release(store, "s3://store", "iris_svc")
    if asks_for_the_champion:
        told = {"CHAMPION_URL": "s3://store/iris_svc/champion.json"}
    loaded = run_load(s3 | told | {"MODEL_DIRECTORY": str(tmp_path)})
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "lacked the necessary privileges"),
        ({"AWS_ACCESS_KEY_ID": "stranger"}, "lacked the necessary privileges"),
        ({"MODEL_URI": "s3://store/iris_svc/2/model.onnx"}, "not found"),
        ({"MODEL_URI": "s3://another/iris_svc/1/model.onnx"}, "not found"),
        ({"MODEL_SHA256": "0" * 64}, "the SHA-256 is"),
    ],
    ids=["wrong key", "unknown key", "no such object", "no such bucket", "wrong digest"],
)
def test_what_an_s3_server_refuses_or_does_not_have_is_not_loaded(
    refusal: Refusal,
    store: Path,
    s3: dict[str, str],
    tmp_path: Path,
    told: dict[str, str],
    reason: str,
) -> None:
    usual = release(store, "s3://store", "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
    assert reason in refusal(s3 | usual | told)
    assert files_in(tmp_path) == {}


def test_a_gs_address_is_read_by_the_same_code(store: Path, tmp_path: Path) -> None:
    """Google answers an anonymous GET of /BUCKET/OBJECT, which an S3 server does as well."""
    with s3_server(store.parent) as url:
        google = {"GOOGLE_BASE_URL": url, "GOOGLE_SKIP_SIGNATURE": "true"}
        told = release(store, "gs://store", "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        loaded = run_load(google | told)
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


# --- nothing else is ever ready -------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Failure]]:
    directory = shutil.copytree(trained, tmp_path_factory.mktemp("broken") / "store")
    with run_store(directory) as url:
        found = failures(directory, url)
        nobody = f"http://127.0.0.1:{free_port()}/iris_svc/1/model.onnx"
        told, reason = found["store unreachable"]
        yield found | {"store unreachable": Failure(told | {"MODEL_URI": nobody}, reason)}


@pytest.fixture(scope="module")
def running(store: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The replica that was there before."""
    directory = str(tmp_path_factory.mktemp("running"))
    with replica(release(store, url, "iris_svc") | {"MODEL_DIRECTORY": directory}) as server:
        yield server


@contextmanager
def asked(address: str, statuses: list[int]) -> Iterator[None]:
    """Asks for predictions all the time; 0 is no answer."""
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=10) as client:
            # Often, and without taking a core from those who are asked.
            while not over.wait(0.01):
                try:
                    answer = client.post(f"{address}/predict", json=BODY)
                    statuses.append(answer.status_code)
                except httpx.HTTPError:
                    statuses.append(0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_the_seven_failures_are_all_there(broken: dict[str, Failure]) -> None:
    assert tuple(broken) == ALL_FAILURES


@pytest.mark.parametrize("name", ALL_FAILURES)
def test_a_replica_that_cannot_load_is_never_ready_and_the_one_before_answers_all(
    broken: dict[str, Failure], running: Server, tmp_path: Path, name: str
) -> None:
    told, reason = broken[name]
    port = free_port()
    environment = {"MODEL_DIRECTORY": str(tmp_path), "PORT": str(port), **told}
    of_new: list[int] = []
    of_running: list[int] = []
    with (
        asked(f"http://127.0.0.1:{port}", of_new),
        asked(running.url, of_running),
        pytest.raises(ServerError, match=re.escape(reason)),
        replica(environment),
    ):
        pass
    assert set(of_new) == {0}
    assert set(of_running) == {200}


@pytest.mark.parametrize("name", ["truncated", "store unreachable"])
def test_what_was_loaded_before_is_still_there(
    broken: dict[str, Failure], store: Path, url: str, tmp_path: Path, name: str
) -> None:
    directory = {"MODEL_DIRECTORY": str(tmp_path)}
    assert run_load(release(store, url, "iris_svc") | directory).returncode == 0
    refused = run_load(directory | broken[name].environment)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1
    assert files_in(tmp_path) == artifact(store, "iris_svc")


def test_nothing_is_predicted_before_the_model_is_there(
    store: Path, url: str, tmp_path: Path
) -> None:
    port = free_port()
    told = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path), "PORT": str(port)}
    statuses: list[int] = []
    with asked(f"http://127.0.0.1:{port}", statuses), replica(told):
        # Those after the last one that was not answered come from a replica that is ready.
        wait_until(lambda: statuses[-20:] == [200] * 20, "answers")
        answered = statuses[: len(statuses)]
    first = answered.index(200)
    assert set(answered[:first]) == {0}
    assert set(answered[first:]) == {200}


def test_a_running_replica_needs_no_store_and_neither_does_its_restart(
    store: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        with run_store(store) as url:
            told = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
            server = stack.enter_context(replica(told))
        assert "cannot read" in run_load(told).stderr
        with replica(told, init_step=False) as restarted:
            assert predictions(restarted) == predictions(server)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority, beside those of a server on this machine."""
    directory = tmp_path_factory.mktemp("certificates")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    key = ["-newkey", "rsa:2048", "-nodes"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority"],
        ["req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"],
        ["x509", "-req", "-in", "server.csr", *signed, "-extfile", "names", "-out", "server.pem"],
    ):
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)
    return directory / "ca.pem"


@contextmanager
def served_over_tls(server: http.server.HTTPServer, authority: Path) -> Iterator[str]:
    """Runs a server behind the certificate that the authority gave it, and gives its URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.with_name("server.pem"), authority.with_name("server.key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_model_is_loaded_over_https_if_the_authority_is_known(
    store: Path, authority: Path, tmp_path: Path
) -> None:
    files = partial(http.server.SimpleHTTPRequestHandler, directory=str(store))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), files)
    with served_over_tls(server, authority) as url:
        told = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        refused = run_load(told)
        assert (refused.returncode, files_in(tmp_path)) == (1, {})
        assert "cannot read https://" in refused.stderr
        loaded = run_load(told | {"SSL_CERT_FILE": str(authority)})
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


def test_an_https_address_is_not_left_for_http(
    store: Path, url: str, authority: Path, tmp_path: Path
) -> None:
    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("location", f"{url}{self.path}")
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    with served_over_tls(server, authority) as tls_url:
        told = release(store, tls_url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        refused = run_load(told | {"SSL_CERT_FILE": str(authority)})
    assert (refused.returncode, files_in(tmp_path)) == (1, {})
    assert "cannot read https://" in refused.stderr


# --- what the init step is told -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"MODEL_URI": "x"}, "x is no model.onnx"),
        ({"MODEL_SHA256": "0" * 64}, "nothing is no model.onnx"),
        ({"MODEL_URI": "file:///a/model.onnx"}, "its SHA-256 is not given"),
        ({"MODEL_URI": "file:///a/model.onnx", "MODEL_SHA256": "0" * 63}, "not 64 digits"),
        ({"MODEL_URI": "file:///a/model.onnx", "MODEL_SHA256": "z" * 64}, "not 64 digits"),
        ({"MODEL_URI": "/a/model.onnx", "MODEL_SHA256": "0" * 64}, "relative URL"),
        ({"MODEL_URI": "model.onnx", "MODEL_SHA256": "0" * 64}, "relative URL"),
        ({"MODEL_URI": "ftp://a/b/model.onnx", "MODEL_SHA256": "0" * 64}, "Unable to recognise"),
        ({"MODEL_URI": "file:///none/model.onnx", "MODEL_SHA256": "0" * 64}, "cannot read"),
        ({"MODEL_URI": "http://a.invalid/model.onnx", "MODEL_SHA256": "0" * 64}, "cannot read"),
        ({"MODEL_URI": "http://[x/model.onnx", "MODEL_SHA256": "0" * 64}, "invalid"),
        ({"LOAD_DEADLINE_SECONDS": "inf"}, "less than or equal to 86400"),
        ({"LOAD_DEADLINE_SECONDS": "soon"}, "a valid number"),
        ({"CHAMPION_URL": "http://a.invalid/champion?project_name=b"}, "has a query"),
    ],
)
def test_a_release_that_cannot_be_understood_is_refused_with_a_reason(
    refusal: Refusal, tmp_path: Path, told: dict[str, str], reason: str
) -> None:
    assert reason in refusal(told | {"MODEL_DIRECTORY": str(tmp_path)})
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (b"", "is not JSON"),
        (b"<html>", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b"{}", "names no model"),
        (b'{"artifact_file_paths": null, "artifact_sha256": "0"}', "names no model"),
        (b'{"artifact_file_paths": {"onnx": 1}, "artifact_sha256": "0"}', "names no model"),
        (
            b'{"artifact_file_paths": {"onnx": ["model.onnx"]}, "artifact_sha256": "0"}',
            "no model.onnx",
        ),
        (b'{"artifact_file_paths": {"onnx": "http://[x/model.onnx"}}', "names no model"),
        (b'{"artifact_file_paths": {"onnx": "a/model.onnx"}}', "names no model"),
        (
            b'{"artifact_file_paths": {"onnx": "a/model.onnx"}, "artifact_sha256": null}',
            "its SHA-256 is not given",
        ),
        (b" " * 1_000_001, "more than 1000000"),
    ],
)
def test_a_champion_that_names_no_model_is_refused_with_a_reason(
    refusal: Refusal, store: Path, url: str, tmp_path: Path, champion: bytes, reason: str
) -> None:
    name = f"{uuid4().hex}.json"
    (store / name).write_bytes(champion)
    told = {"CHAMPION_URL": f"{url}/{name}", "MODEL_DIRECTORY": str(tmp_path)}
    assert reason in refusal(told)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (b"", "is not JSON"),
        (b"[]", "holds no JSON object"),
        (b'{"name": "a"}', "does not say sha256, version"),
        (b'{"name": "a", "version": "1", "sha256": ["0"]}', "the SHA-256 is ['0']"),
    ],
)
def test_metadata_that_describes_no_model_is_refused_with_a_reason(
    refusal: Refusal, tmp_path: Path, metadata: bytes, reason: str
) -> None:
    store = tmp_path / "store"
    write_artifact(store, b"a model", {})
    (store / "metadata.json").write_bytes(metadata)
    told = {"MODEL_URI": f"file://{store}/model.onnx", "MODEL_SHA256": sha256(store / "model.onnx")}
    assert reason in refusal(told | {"MODEL_DIRECTORY": str(tmp_path / "model")})


def test_a_model_above_the_limit_is_refused_before_it_is_moved(
    refusal: Refusal, store: Path, tmp_path: Path
) -> None:
    told = release(store, f"file://{store}", "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
    size = (store / "iris_svc/1/model.onnx").stat().st_size
    limit = size - 1
    assert f"has {size} bytes, more than {limit}" in refusal(told | {"MAX_MODEL_BYTES": str(limit)})
    assert files_in(tmp_path) == {}


# --- what a store does that is not well -----------------------------------------------------------


@contextmanager
def bad_store(files: dict[str, Any]) -> Iterator[str]:
    """Answers each path by a function that is given the request's handler."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            files[self.path.rpartition("/")[2]](self)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Keeps the output of the tests clean."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def answering(content: bytes, announced_bytes: int | None = None) -> Callable[[Any], None]:
    """Answers 200 with a body, which may be shorter than it is announced."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(announced_bytes or len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = True

    return answer


def test_a_transfer_that_is_cut_off_is_no_model(store: Path, tmp_path: Path) -> None:
    files = artifact(store, "iris_svc")
    model = files["model.onnx"]
    answers = {
        "metadata.json": answering(files["metadata.json"]),
        "model.onnx": answering(model[:1_000], len(model)),
    }
    with bad_store(answers) as url:
        told = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        refused = run_load(told)
    assert refused.returncode == 1
    assert "body error" in refused.stderr
    assert files_in(tmp_path) == {}


def test_an_error_that_passes_is_tried_again(store: Path, tmp_path: Path) -> None:
    files = artifact(store, "iris_svc")
    statuses = iter([500, 503])

    def recovering(handler: http.server.BaseHTTPRequestHandler) -> None:
        if status := next(statuses, None):
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            answering(files["model.onnx"])(handler)

    with bad_store(
        {"metadata.json": answering(files["metadata.json"]), "model.onnx": recovering}
    ) as url:
        told = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        loaded = run_load(told)
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == files


@pytest.mark.parametrize("beginning", [b"", b"{"], ids=["says nothing", "trickles"])
def test_a_store_that_does_not_get_on_is_given_up_at_the_deadline(
    store: Path, tmp_path: Path, beginning: bytes
) -> None:
    over = threading.Event()

    def dawdle(handler: http.server.BaseHTTPRequestHandler) -> None:
        if beginning:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        # A byte at a time never lets a timeout pass that counts from the last one.
        while not over.wait(0.05):
            try:
                handler.wfile.write(beginning)
            except OSError:
                return
        handler.close_connection = True

    with bad_store({"metadata.json": dawdle}) as url:
        told = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        # The store goes on until this returns, and the library's own limit is 30 seconds.
        try:
            refused = run_load(told | {"LOAD_DEADLINE_SECONDS": "2"}, deadline_seconds=20)
        finally:
            over.set()
    assert refused.returncode == 1
    assert re.search(r"cannot read .*/metadata.json within [01]\.\d seconds", refused.stderr)


# --- killed, twice at once, no place --------------------------------------------------------------


@contextmanager
def half_way(store: Path, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a load that has written a part of the model and waits for the rest."""
    files = artifact(store, "iris_svc")
    over = threading.Event()

    def stall(handler: http.server.BaseHTTPRequestHandler) -> None:
        answering(files["model.onnx"][:1_000], len(files["model.onnx"]))(handler)
        over.wait(30)

    described = answering(files["metadata.json"])
    with bad_store({"metadata.json": described, "model.onnx": stall}) as url:
        told = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(directory)}
        process = subprocess.Popen(
            INIT_STEP, cwd=ROOT, env={**os.environ, **told}, stderr=subprocess.PIPE, text=True
        )
        with process:
            try:
                wait_until((directory / "model.onnx.partial").exists, "the partial file")
                yield process
            finally:
                over.set()
                process.kill()


def test_a_load_that_is_killed_half_way_leaves_nothing_that_counts(
    store: Path, url: str, tmp_path: Path
) -> None:
    directory = {"MODEL_DIRECTORY": str(tmp_path)}
    assert run_load(release(store, url, "iris_logistic") | directory).returncode == 0
    before = artifact(store, "iris_logistic")
    with half_way(store, tmp_path) as process:
        process.kill()
        process.wait()
        left = files_in(tmp_path)
    assert set(left) == {*before, "model.onnx.partial"}
    assert {name: left[name] for name in before} == before
    # The next load neither trips over what is left nor waits for who is gone.
    assert run_load(release(store, url, "iris_svc") | directory).returncode == 0
    assert files_in(tmp_path) == artifact(store, "iris_svc")


def test_two_loads_into_one_directory_do_not_mix(store: Path, url: str, tmp_path: Path) -> None:
    with half_way(store, tmp_path):
        told = release(store, url, "iris_logistic") | {"MODEL_DIRECTORY": str(tmp_path)}
        second = run_load(told)
        assert second.returncode == 1
        assert "another load is writing" in second.stderr
        # Nor does it take away what the first one has written.
        assert set(files_in(tmp_path)) == {"model.onnx.partial"}


def test_a_server_that_starts_between_the_two_files_does_not_serve(
    store: Path, url: str, tmp_path: Path
) -> None:
    for name, source in {"model.onnx": "iris_svc", "metadata.json": "iris_logistic"}.items():
        shutil.copy(store / source / "1" / name, tmp_path)
    told = {"MODEL_DIRECTORY": str(tmp_path)}
    with pytest.raises(ServerError, match="SHA-256"), replica(told, init_step=False):
        pass


@pytest.mark.parametrize("name", ["iris_svc", "iris_logistic"])
def test_a_disk_that_takes_no_more_half_way_keeps_the_model_before(
    store: Path, url: str, tmp_path: Path, name: str
) -> None:
    directory = {"MODEL_DIRECTORY": str(tmp_path)}
    assert run_load(release(store, url, "iris_discriminant") | directory).returncode == 0
    before = files_in(tmp_path)
    # Of the first it is the model that does not fit, of the second the metadata.
    does_fit = len(artifact(store, name)["model.onnx"]) <= LIMIT_BYTES
    assert does_fit is (name == "iris_logistic")
    told = release(store, url, name) | directory
    refused = subprocess.run(
        ["sh", "-c", 'ulimit -f 1 && exec "$@"', "sh", *INIT_STEP],
        cwd=ROOT,
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert f"cannot write into {tmp_path}: File too large" in refused.stderr
    assert files_in(tmp_path) == before


def test_a_server_without_an_init_step_does_not_start(tmp_path: Path) -> None:
    told = {"MODEL_DIRECTORY": str(tmp_path)}
    with pytest.raises(ServerError, match=r"python -m app\.load"), replica(told, init_step=False):
        pass


# --- the claim ------------------------------------------------------------------------------------


@pytest.mark.budget("measure --quick")
def test_the_claim_holds_and_its_control_does_not(tmp_path: Path) -> None:
    if not (PATTERN / "models/metadata.json").exists():
        train(PATTERN / "models")
    module = "chapter3_release_patterns.model_load_pattern.measure"
    command = [sys.executable, "-m", module, "--quick", "--output", str(tmp_path / "measure")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    results = load_results(tmp_path)
    assert results.counts == {
        "models_served": 3,
        "failures_refused": 2,
        "predictions_before_ready": 0,
        "answers_wrong_or_missing": 0,
    }
    # It is ready after every failure, and then answers with another model or not at all.
    assert results.control["failures_refused"] == 0
    assert results.control["predictions_before_ready"] > 0
    assert results.control["answers_wrong_or_missing"] >= 2


def test_an_update_moves_the_model_and_its_metadata_and_nothing_else(
    store: Path, tmp_path: Path
) -> None:
    with run_store(store, "measure.baselines:far_store") as url:
        told = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        assert run_load(told).returncode == 0
        moved = httpx.get(f"{url}/moved").json()
    assert moved == sum(map(len, artifact(store, "iris_svc").values()))


# --- with Docker ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    """A network with a store in it, for containers without a port on this machine."""
    with network_with_store() as network:
        yield network


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_one_image_digest_serves_the_three_models(network: str, trained: Path) -> None:
    digests = set()
    for name in MODELS:
        with serving(name, network, ROWS[0].tolist()) as container:
            session = onnxruntime.InferenceSession(trained / name / "1/model.onnx")
            expected = session.run(["probabilities"], {"X": ROWS})[0]
            found = ask(container.name, ROWS.tolist())
        assert None not in found
        np.testing.assert_allclose(np.array(found, np.float32), expected, rtol=0, atol=1e-5)
        digests.add(container.image)
    assert len(digests) == 1
    # With the model inside each of them is an image of its own.
    assert len({digest_with_the_model(name, trained) for name in MODELS} - digests) == 3


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_container_whose_disk_is_read_only_loads_nothing(network: str) -> None:
    champion = "CHAMPION_URL=http://store:8001/iris_svc/champion.json"
    told = ["--env", champion, "--env", "MODEL_DIRECTORY=/model", "--network", network]
    command = ["docker", "run", "--rm", "--read-only", *told, image_of("api")]
    command += ["python", "-m", "app.load"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "cannot write into /model: Read-only file system" in refused.stderr
