"""Tests that model_load_pattern serves any model, and never one that was not released."""

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
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from chapter3_release_patterns.model_load_pattern.app.load import LoadError, load
from chapter3_release_patterns.model_load_pattern.app.settings import Settings
from chapter3_release_patterns.model_load_pattern.measure.__main__ import (
    MODELS,
    environment_for,
    probabilities_of,
    serve_images,
    start_under_load,
)
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
from tools.measure.results import load as load_results
from tools.measure.server import Server, answer_of, wait_until
from tools.run.ports import free_port

PATTERN = ROOT / "chapter3_release_patterns/model_load_pattern"
# The largest file under `ulimit -f 1` in sh.
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


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files_in(directory: Path) -> dict[str, bytes]:
    """Returns the content of every file in a directory."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def artifact(store: Path, name: str) -> dict[str, bytes]:
    return files_in(store / name / "1")


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], str]:
    """Runs the init step in this process and returns why it fails, which is faster."""

    def reason(environment: dict[str, str]) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises((LoadError, SettingsError, ValidationError)) as refused:
            load(Settings())
        return str(refused.value)

    return reason


Refusal = Callable[[dict[str, str]], str]
Handle = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def store_with(
    store: Path, handlers: dict[str, Handle], authority: Path | None = None
) -> Iterator[str]:
    """Serves iris_svc, with handlers for some of its files, over TLS if there is an authority."""
    files = {name: sending(content) for name, content in artifact(store, "iris_svc").items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            (files | handlers)[self.path.rpartition("/")[2]](self)

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
            """Logs nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if authority:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(
                authority.with_name("server.pem"), authority.with_name("server.key")
            )
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http{'s' if authority else ''}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def sending(content: bytes, announced_bytes: int | None = None) -> Handle:
    """Responds with 200 and a body, which may be shorter than announced."""

    def send(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(announced_bytes or len(content)))
        handler.end_headers()
        handler.wfile.write(content)
        handler.close_connection = True

    return send


def truncated_model(store: Path) -> Handle:
    """Sends the beginning of the model."""
    model = artifact(store, "iris_svc")["model.onnx"]
    return sending(model[:1_000], len(model))


# --- one server, any model ------------------------------------------------------------------------


def test_the_three_models_predict_differently(store: Path) -> None:
    found = [probabilities_of(store / name / "1") for name in MODELS]
    for one, other in combinations(found, 2):
        assert np.abs(one - other).max() > 0.1


def test_training_twice_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    train(tmp_path)
    for path in trained.rglob("*.*"):
        assert (tmp_path / path.relative_to(trained)).read_bytes() == path.read_bytes()


def test_an_unwritable_output_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "--output", "/sys/models"])
    with pytest.raises(SystemExit) as ended:
        train_main()
    assert str(ended.value.code).startswith("error: cannot write into /sys/models: ")
    assert "\n" not in str(ended.value.code)


def test_the_release_of_the_manifests_is_the_metadata_that_training_gives(trained: Path) -> None:
    lines = (PATTERN / "manifests/release.env").read_text().splitlines()
    released = dict(line.split("=") for line in lines if not line.startswith("#"))
    assert released["MODEL_URI"] == "http://store:8001/iris_svc/1/metadata.json"
    assert released["MODEL_SHA256"] == sha256(trained / "iris_svc/1/metadata.json")


def test_a_champion_of_the_store_fixes_the_labels_too(trained: Path) -> None:
    for name in MODELS:
        champion = json.loads((trained / name / "champion.json").read_bytes())
        assert champion["artifact_file_paths"] == {"onnx": "1/metadata.json"}
        assert champion["artifact_sha256"] == sha256(trained / name / "1/metadata.json")


# --- addresses ------------------------------------------------------------------------------------


def test_a_release_fixes_the_labels_too(store: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(store / "iris_svc/1", tmp_path / "store")
    environment = {
        "MODEL_URI": f"file://{copy}/metadata.json",
        "MODEL_SHA256": sha256(copy / "metadata.json").upper(),
        "MODEL_DIRECTORY": str(tmp_path / "model"),
    }
    loaded = run_load(environment)
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path / "model") == artifact(store, "iris_svc")
    labels = (copy / "metadata.json").read_text().replace("setosa", "virginica")
    (copy / "metadata.json").write_text(labels)
    refused = run_load(environment)
    assert refused.returncode == 1
    assert "metadata.json: the SHA-256 is" in refused.stderr


@contextmanager
def s3_server(directory: Path, *options: str) -> Iterator[str]:
    """Runs rclone's S3 server, which serves the subdirectories as buckets."""
    url = f"http://127.0.0.1:{free_port()}"
    rclone = Path(sys.executable).with_name("rclone")
    address = ["--addr", url.removeprefix("http://"), "--config", os.devnull]
    command = [str(rclone), "serve", "s3", *address, *options, str(directory)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            # Any status will do: without a key it is a 403.
            wait_until(lambda: answer_of(url).isdecimal(), "the S3 server")
            yield url
        finally:
            process.kill()


KEYS = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "for-this-test-only"}


@pytest.fixture(scope="module")
def s3(store: Path) -> Iterator[dict[str, str]]:
    """The environment to read the models from the bucket `store`."""
    key = ",".join(KEYS.values())
    with s3_server(store.parent, "--auth-key", key) as url:
        yield KEYS | {"AWS_ENDPOINT": url, "AWS_REGION": "us-east-1"}


def test_champion_and_model_are_loaded_from_an_s3_server_that_checks_signatures(
    store: Path, s3: dict[str, str], tmp_path: Path
) -> None:
    environment = {"CHAMPION_URL": "s3://store/iris_svc/champion.json"}
    loaded = run_load(s3 | environment | {"MODEL_DIRECTORY": str(tmp_path)})
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "lacked the necessary privileges"),
        ({"MODEL_URI": "s3://store/iris_svc/2/metadata.json"}, "not found"),
        ({"MODEL_URI": "s3://another/iris_svc/1/metadata.json"}, "not found"),
        ({"MODEL_SHA256": "0" * 64}, "the SHA-256 is"),
    ],
    ids=["wrong key", "no such object", "no such bucket", "wrong digest"],
)
def test_an_s3_model_that_is_forbidden_missing_or_another_is_not_loaded(
    refusal: Refusal,
    store: Path,
    s3: dict[str, str],
    tmp_path: Path,
    environment: dict[str, str],
    reason: str,
) -> None:
    usual = release(store, "s3://store", "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
    assert reason in refusal(s3 | usual | environment)
    assert files_in(tmp_path) == {}


def test_a_model_is_loaded_from_a_gs_address(store: Path, tmp_path: Path) -> None:
    # Google and S3 both serve an anonymous GET of /BUCKET/OBJECT.
    with s3_server(store.parent) as url:
        google = {"GOOGLE_BASE_URL": url, "GOOGLE_SKIP_SIGNATURE": "true"}
        environment = release(store, "gs://store", "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        loaded = run_load(google | environment)
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


# --- broken releases ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Failure]]:
    directory = shutil.copytree(trained, tmp_path_factory.mktemp("broken") / "store")
    with run_store(directory) as url:
        yield failures(directory, url)


@pytest.fixture(scope="module")
def running(store: Path, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A replica of the previous release."""
    directory = str(tmp_path_factory.mktemp("running"))
    with replica(release(store, url, "iris_svc") | {"MODEL_DIRECTORY": directory}) as server:
        yield server


@pytest.mark.parametrize("name", ALL_FAILURES)
def test_a_broken_release_is_never_ready_and_the_running_replica_keeps_serving(
    broken: dict[str, Failure], running: Server, store: Path, tmp_path: Path, name: str
) -> None:
    released, reason = broken[name]
    expected = probabilities_of(store / "iris_svc/1")
    environment = environment_for(tmp_path, released)
    start = start_under_load(environment, running.url, expected, replica)
    assert reason in start.refusal
    assert (start.early, start.wrong) == (0, 0)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority; the files of a local server are next to it."""
    directory = tmp_path_factory.mktemp("certificates")
    (directory / "names").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n"
    )
    key = ["-newkey", "rsa:2048", "-nodes"]
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority"],
        ["req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"],
        ["x509", "-req", "-in", "server.csr", *signed, "-extfile", "names", "-out", "server.pem"],
    ):
        subprocess.run(["openssl", *command], cwd=directory, check=True, capture_output=True)
    return directory / "ca.pem"


def test_https_works_only_with_a_trusted_authority(
    store: Path, authority: Path, tmp_path: Path
) -> None:
    with store_with(store, {}, authority) as url:
        environment = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        refused = run_load(environment)
        assert (refused.returncode, files_in(tmp_path)) == (1, {})
        assert "cannot read https://" in refused.stderr
        loaded = run_load(environment | {"SSL_CERT_FILE": str(authority)})
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


def redirecting(url: str) -> Handle:
    """Responds with a redirect to the same path of another server."""

    def redirect(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("location", f"{url}{handler.path}")
        handler.end_headers()
        handler.close_connection = True

    return redirect


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_https_does_not_follow_a_redirect_to_http(
    store: Path, url: str, authority: Path, tmp_path: Path, scheme: str
) -> None:
    redirect = redirecting(url)
    with store_with(store, {"metadata.json": redirect}, authority) as tls_url:
        address = tls_url.replace("https", scheme)
        environment = release(store, address, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        refused = run_load(environment | {"SSL_CERT_FILE": str(authority)})
    assert (refused.returncode, files_in(tmp_path)) == (1, {})
    assert f"cannot read {scheme}://" in refused.stderr


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize(("host", "code"), [("127.0.0.1", 0), ("localhost", 1)])
@pytest.mark.parametrize("name", ["metadata.json", "model.onnx"])
def test_a_redirect_is_followed_only_within_the_host(
    store: Path, authority: Path, tmp_path: Path, tls: bool, host: str, code: int, name: str
) -> None:
    asked = []
    content = artifact(store, "iris_svc")[name]

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["host"])
        sending(content)(handler)

    served_with = authority if tls else None
    with (
        store_with(store, {name: answer}, served_with) as other,
        store_with(
            store, {name: redirecting(other.replace("127.0.0.1", host))}, served_with
        ) as url,
    ):
        environment = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        loaded = run_load(environment | {"SSL_CERT_FILE": str(authority)})
    assert loaded.returncode == code, loaded.stderr
    # The other host is not even asked.
    assert len(asked) == 1 - code
    assert len(files_in(tmp_path)) == 2 * len(asked)


def test_a_proxy_of_the_environment_is_used(store: Path, tmp_path: Path) -> None:
    environment = release(store, "http://models.invalid", "iris_svc")
    with store_with(store, {}) as url:
        directory = {"MODEL_DIRECTORY": str(tmp_path)}
        loaded = run_load(environment | directory | {"HTTP_PROXY": url})
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


# --- invalid settings and files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"MODEL_URI": "x"}, "x is not the address of metadata.json"),
        ({"MODEL_SHA256": "0" * 64}, "nothing is not the address of"),
        ({"MODEL_URI": "file:///a/model.onnx"}, "a/model.onnx is not the address of"),
        ({"MODEL_URI": "file:///a/metadata.json"}, "the SHA-256 is missing"),
        ({"MODEL_URI": "file:///a/metadata.json", "MODEL_SHA256": "z" * 64}, "not 64 hex digits"),
        ({"MODEL_URI": "/a/metadata.json", "MODEL_SHA256": "0" * 64}, "relative URL"),
        ({"MODEL_URI": "ftp://a/b/metadata.json", "MODEL_SHA256": "0" * 64}, "Unable to recognise"),
        ({"MODEL_URI": "http://a.invalid/metadata.json", "MODEL_SHA256": "0" * 64}, "cannot read"),
        ({"MODEL_URI": "http://[x/metadata.json", "MODEL_SHA256": "0" * 64}, "Invalid IPv6 URL"),
        ({"LOAD_DEADLINE_SECONDS": "inf"}, "less than or equal to 86400"),
        ({"CHAMPION_STORES": "file://"}, 'value for field "champion_stores"'),
        ({"LOAD_DEADLINE_SECONDS": "soon"}, "a valid number"),
        ({"CHAMPION_URL": "http://a.invalid/champion?project_name=b"}, "has a query"),
    ],
)
def test_an_invalid_release_is_refused_with_a_reason(
    refusal: Refusal, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    assert reason in refusal(environment | {"MODEL_DIRECTORY": str(tmp_path)})
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    ("champion", "reason"),
    [
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"{}", "names no model"),
        (b'{"artifact_file_paths": null, "artifact_sha256": "0"}', "names no model"),
        (b'{"artifact_file_paths": {"onnx": 1}, "artifact_sha256": "0"}', "names no model"),
        (
            b'{"artifact_file_paths": {"onnx": ["metadata.json"]}, "artifact_sha256": "0"}',
            "not the address of metadata.json",
        ),
        (b'{"artifact_file_paths": {"onnx": "a/metadata.json"}}', "names no model"),
        (
            b'{"artifact_file_paths": {"onnx": "a/metadata.json"}, "artifact_sha256": null}',
            "the SHA-256 is missing",
        ),
        (b" " * 1_000_001, "more than 1000000"),
    ],
)
def test_an_invalid_champion_is_refused_with_a_reason(
    refusal: Refusal, store: Path, url: str, tmp_path: Path, champion: bytes, reason: str
) -> None:
    name = f"{uuid4().hex}.json"
    (store / name).write_bytes(champion)
    environment = {"CHAMPION_URL": f"{url}/{name}", "MODEL_DIRECTORY": str(tmp_path)}
    assert reason in refusal(environment)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize(
    "address",
    [
        "http://{host}/1/metadata.json",
        "http://169.254.169.254/1/metadata.json",
        "file:///etc/metadata.json",
        "https://user@{host}/1/metadata.json",
        "https://{host}.evil.example/1/metadata.json",
        "https://{host}\\@evil.example/1/metadata.json",
        "?://{host}/1/metadata.json",
    ],
)
def test_a_champion_over_https_cannot_lead_to_another_host_or_scheme(
    store: Path, authority: Path, tmp_path: Path, address: str
) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        paths = {"onnx": address.format(host=handler.headers["host"])}
        champion = {"artifact_file_paths": paths, "artifact_sha256": "0" * 64}
        sending(json.dumps(champion).encode())(handler)

    with store_with(store, {"champion.json": answer}, authority) as url:
        environment = {"CHAMPION_URL": f"{url}/champion.json", "MODEL_DIRECTORY": str(tmp_path)}
        refused = run_load(environment | {"SSL_CERT_FILE": str(authority)})
    assert refused.returncode == 1
    assert "not one of CHAMPION_STORES" in refused.stderr
    assert files_in(tmp_path) == {}


def test_a_champion_may_be_in_a_store_that_is_allowed(
    refusal: Refusal, store: Path, url: str, tmp_path: Path
) -> None:
    champion = {
        "artifact_file_paths": {"onnx": f"file://{store}/iris_svc/1/metadata.json"},
        "artifact_sha256": sha256(store / "iris_svc/1/metadata.json"),
    }
    name = f"{uuid4().hex}.json"
    (store / name).write_text(json.dumps(champion))
    environment = {"CHAMPION_URL": f"{url}/{name}", "MODEL_DIRECTORY": str(tmp_path)}
    assert f"{url}/{name} names a model in file://, not one of" in refusal(environment)
    loaded = run_load(
        environment | {"CHAMPION_STORES": '["https://models.example.com", "file://"]'}
    )
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == artifact(store, "iris_svc")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (b"", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"name": "a"}', "does not contain sha256, version"),
        (b'{"name": "a", "version": "1", "sha256": ["0"]}', "not ['0']"),
    ],
)
def test_invalid_metadata_is_refused_with_a_reason(
    refusal: Refusal, tmp_path: Path, metadata: bytes, reason: str
) -> None:
    store = tmp_path / "store"
    write_artifact(store, b"a model", {})
    (store / "metadata.json").write_bytes(metadata)
    environment = {
        "MODEL_URI": f"file://{store}/metadata.json",
        "MODEL_SHA256": sha256(store / "metadata.json"),
    }
    assert reason in refusal(environment | {"MODEL_DIRECTORY": str(tmp_path / "model")})


def test_a_model_above_the_size_limit_is_refused(
    refusal: Refusal, store: Path, tmp_path: Path
) -> None:
    environment = release(store, f"file://{store}", "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
    size = (store / "iris_svc/1/model.onnx").stat().st_size
    limit = size - 1
    assert f"has {size} bytes, more than {limit}" in refusal(
        environment | {"MAX_MODEL_BYTES": str(limit)}
    )
    assert files_in(tmp_path) == {}


def test_what_is_logged_has_no_control_characters(store: Path, tmp_path: Path) -> None:
    name = "iris\n2026-11-26 ERROR forged \x1b[2J\u202e"
    copy = tmp_path / "iris_svc/1"
    model = artifact(store, "iris_svc")["model.onnx"]
    write_artifact(copy, model, {"name": name, "version": "1"})
    environment = {
        "MODEL_URI": f"file://{copy}/metadata.json",
        "MODEL_SHA256": sha256(copy / "metadata.json"),
        "MODEL_DIRECTORY": str(tmp_path / "model"),
    }
    loaded = run_load(environment)
    assert loaded.returncode == 0, loaded.stderr
    assert r"iris\n2026-11-26 ERROR forged \x1b[2J\u202e version 1, SHA-256" in loaded.stderr
    refused = run_load(environment | {"MODEL_URI": f"file:///{name}/metadata.json"})
    assert refused.returncode == 1
    for run in (loaded, refused):
        assert run.stderr.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:hush@127.0.0.1:{port}/1/metadata.json",
        "http://user:hush@127.0.0.1:{port}/1/other",
        "https://user:hu/sh@127.0.0.1:{port}/1/metadata.json",
        "http://user:hu@sh@127.0.0.1:{port}/1/metadata.json",
        "http://127.0.0.1:{port}/1/metadata.json?signature=hush/metadata.json",
        "s3://models/1/metadata.json?X-Amz-Signature=hush",
    ],
)
def test_a_refusal_shows_no_password(tmp_path: Path, uri: str) -> None:
    environment = {
        "MODEL_URI": uri.format(port=free_port()),
        "MODEL_SHA256": "0" * 64,
        "MODEL_DIRECTORY": str(tmp_path),
    }
    refused = run_load(environment)
    assert refused.returncode == 1
    assert "***" in refused.stderr
    assert not re.search("hu|sh@", refused.stderr.partition("error: ")[2])


@pytest.mark.parametrize("name", ["metadata.json", "model.onnx"])
def test_a_fifo_is_refused(store: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(store / "iris_svc", tmp_path / "sto re" / "iris_svc")
    (copy / "1" / name).unlink()
    os.mkfifo(copy / "1" / name)
    environment = release(store, (tmp_path / "sto re").as_uri(), "iris_svc")
    directory = {"MODEL_DIRECTORY": str(tmp_path / "model")}
    # Its reader would wait until the test ends: nobody writes.
    refused = run_load(environment | directory, deadline_seconds=20)
    assert refused.returncode == 1
    assert f"iris_svc/1/{name} is not a regular file" in refused.stderr
    assert files_in(tmp_path / "model") == {}


# --- a faulty store -------------------------------------------------------------------------------


def test_a_truncated_transfer_is_refused_and_keeps_the_previous_model(
    store: Path, url: str, tmp_path: Path
) -> None:
    directory = {"MODEL_DIRECTORY": str(tmp_path)}
    assert run_load(release(store, url, "iris_logistic") | directory).returncode == 0
    with store_with(store, {"model.onnx": truncated_model(store)}) as truncated_url:
        refused = run_load(release(store, truncated_url, "iris_svc") | directory)
    assert refused.returncode == 1
    assert re.fullmatch("error: .*body error.*\n", refused.stderr)
    assert files_in(tmp_path) == artifact(store, "iris_logistic")


def test_a_transient_error_is_retried(store: Path, tmp_path: Path) -> None:
    files = artifact(store, "iris_svc")
    statuses = iter([500, 503])

    def recovering(handler: http.server.BaseHTTPRequestHandler) -> None:
        if status := next(statuses, None):
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        else:
            sending(files["model.onnx"])(handler)

    with store_with(store, {"model.onnx": recovering}) as url:
        environment = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        loaded = run_load(environment)
    assert loaded.returncode == 0, loaded.stderr
    assert files_in(tmp_path) == files


@pytest.mark.parametrize("beginning", [b"", b"{"], ids=["silent", "trickling"])
def test_a_slow_store_is_given_up_at_the_deadline(
    store: Path, tmp_path: Path, beginning: bytes
) -> None:
    over = threading.Event()

    def dawdle(handler: http.server.BaseHTTPRequestHandler) -> None:
        if beginning:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
        # Single bytes keep resetting a timeout that counts from the last byte.
        while not over.wait(0.05):
            try:
                handler.wfile.write(beginning)
            except OSError:
                return
        handler.close_connection = True

    with store_with(store, {"metadata.json": dawdle}) as url:
        environment = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        # The store continues until this returns, and the library's own timeout is 30 seconds.
        try:
            refused = run_load(environment | {"LOAD_DEADLINE_SECONDS": "2"}, deadline_seconds=20)
        finally:
            over.set()
    assert refused.returncode == 1
    assert re.search(r"cannot read .*/metadata.json within [01]\.\d seconds", refused.stderr)


# --- kills, concurrent loads, full disks ----------------------------------------------------------


@contextmanager
def half_way(store: Path, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a load that has written part of the model and waits for the rest."""
    over = threading.Event()

    def stall(handler: http.server.BaseHTTPRequestHandler) -> None:
        truncated_model(store)(handler)
        over.wait(30)

    with store_with(store, {"model.onnx": stall}) as url:
        environment = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(directory)}
        env = os.environ | environment
        process = subprocess.Popen(INIT_STEP, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        with process:
            try:
                wait_until((directory / "model.onnx.partial").exists, "the partial file")
                yield process
            finally:
                over.set()
                process.kill()


def test_a_killed_load_changes_nothing_and_does_not_block_the_next(
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
    assert run_load(release(store, url, "iris_svc") | directory).returncode == 0
    assert files_in(tmp_path) == artifact(store, "iris_svc")


def test_a_partial_file_follows_no_symlink(store: Path, url: str, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"keep")
    for name in ("model.onnx", "metadata.json"):
        (directory / f"{name}.partial").symlink_to(elsewhere)
    loaded = run_load(release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(directory)})
    assert loaded.returncode == 0, loaded.stderr
    assert elsewhere.read_bytes() == b"keep"
    assert not any(path.is_symlink() for path in directory.iterdir())
    assert files_in(directory) == artifact(store, "iris_svc")


def test_a_second_load_into_a_directory_is_refused(store: Path, url: str, tmp_path: Path) -> None:
    with half_way(store, tmp_path):
        environment = release(store, url, "iris_logistic") | {"MODEL_DIRECTORY": str(tmp_path)}
        second = run_load(environment)
        assert second.returncode == 1
        assert "another load is writing" in second.stderr
        # It does not delete what the first load has written.
        assert set(files_in(tmp_path)) == {"model.onnx.partial"}


@pytest.mark.parametrize("name", ["iris_svc", "iris_logistic"])
def test_a_full_disk_keeps_the_previous_model(
    store: Path, url: str, tmp_path: Path, name: str
) -> None:
    directory = {"MODEL_DIRECTORY": str(tmp_path)}
    assert run_load(release(store, url, "iris_discriminant") | directory).returncode == 0
    before = files_in(tmp_path)
    # The model does not fit in the first case, the metadata in the second.
    does_fit = len(artifact(store, name)["model.onnx"]) <= LIMIT_BYTES
    assert does_fit is (name == "iris_logistic")
    environment = release(store, url, name) | directory
    refused = subprocess.run(
        ["sh", "-c", 'ulimit -f 1 && exec "$@"', "sh", *INIT_STEP],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1
    assert f"cannot write into {tmp_path}: File too large" in refused.stderr
    assert files_in(tmp_path) == before


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
        "failures_refused": 1,
        "predictions_before_ready": 0,
        "answers_wrong_or_missing": 0,
    }
    # The control becomes ready and predicts with another model.
    assert results.control["failures_refused"] == 0
    assert results.control["predictions_before_ready"] > 0
    assert results.control["answers_wrong_or_missing"] > 0


def test_an_update_moves_only_the_model_and_its_metadata(store: Path, tmp_path: Path) -> None:
    with run_store(store, "measure.baselines:slow_store") as url:
        environment = release(store, url, "iris_svc") | {"MODEL_DIRECTORY": str(tmp_path)}
        assert run_load(environment).returncode == 0
        moved = httpx.get(f"{url}/moved").json()
    assert moved == sum(map(len, artifact(store, "iris_svc").values()))


# --- with Docker ----------------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_one_image_serves_the_three_models(trained: Path) -> None:
    served, digests, _ = serve_images(trained)
    assert (served, len(digests)) == (3, 1)
    # The control: with the model inside, each model needs its own image.
    assert len({digest_with_the_model(name, trained) for name in MODELS} - digests) == 3


@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_container_with_a_read_only_disk_loads_nothing() -> None:
    champion = "CHAMPION_URL=http://store:8001/iris_svc/champion.json"
    with network_with_store() as network:
        options = ["--env", champion, "--env", "MODEL_DIRECTORY=/model", "--network", network]
        command = ["docker", "run", "--rm", "--read-only", *options, image_of("api")]
        command += ["python", "-m", "app.load"]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "cannot write into /model: Read-only file system" in refused.stderr
