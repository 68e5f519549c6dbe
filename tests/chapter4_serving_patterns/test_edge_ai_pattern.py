"""edge_ai_pattern: releases that are refused, kills, and a page in a real browser."""

import base64
import gzip
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from playwright.sync_api import Browser, Page, Playwright, ViewportSize, sync_playwright
from securesystemslib.dsse import Envelope

from chapter4_serving_patterns.edge_ai_pattern import visit
from chapter4_serving_patterns.edge_ai_pattern.device.settings import Settings
from chapter4_serving_patterns.edge_ai_pattern.device.update import (
    RefusedError,
    check,
    fetch,
    install,
    is_among,
    key_of,
    load,
    payload_of,
    read_pointer,
    release_of,
    roll_back,
    update,
)
from chapter4_serving_patterns.edge_ai_pattern.measure import in_browser, in_python
from chapter4_serving_patterns.edge_ai_pattern.measure.baselines import (
    ask_server,
    install_in_place,
    take_unchecked,
)
from chapter4_serving_patterns.edge_ai_pattern.measure.figures import TRAINING, WITHIN
from chapter4_serving_patterns.edge_ai_pattern.measure.in_browser import (
    OUT_OF_REACH,
    ask,
    settled,
    version_of,
    visiting,
)
from chapter4_serving_patterns.edge_ai_pattern.measure.processes import (
    HERE,
    Publisher,
    Stand,
    stand_in,
)
from chapter4_serving_patterns.edge_ai_pattern.measure.shelf import INSTALLED, NEWEST, held_out
from chapter4_serving_patterns.edge_ai_pattern.publisher import files
from chapter4_serving_patterns.edge_ai_pattern.publisher.files import (
    PublishError,
    headers_of,
    read_app,
    read_channel,
)
from chapter4_serving_patterns.edge_ai_pattern.train.release import predict
from chapter4_serving_patterns.edge_ai_pattern.train.release import sha256 as hex_digest
from tests.browser import needs_browser
from tools.measure.browser import poll, run_browser, without_errors
from tools.measure.server import wait_until
from tools.measure.servers import Process
from tools.read.compose import load as load_compose
from tools.run.ports import free_port
from tools.run.rewrite import launch_of

REASONS = {
    "older": "version 1 is older than 2",
    "same version": "version 2 is signed a second time with other content",
    "expired": "it has expired on 2021-01-01; this clock says ",
    "other width": "self-test: ",
    "not ONNX": "self-test: ",
    "too large": "it is larger than 1000000 bytes: ",
    "golden rows": "self-test: the golden rows give other probabilities",
    "unsigned": "it is not signed by the publisher's key",
    "other key": "it is not signed by the publisher's key",
    "payload": "it is not signed by the publisher's key",
    "model": "its SHA-256 is another one",
    "truncated": "it is cut off after ",
}
DRAWINGS = in_browser.drawings()


@pytest.fixture(scope="module")
def models() -> None:
    """Trains the models and installs the runtime of the page, unless both are there already."""
    command = ["make", "--silent", "RUN=local", "models/metadata.json", "runtime"]
    subprocess.run(command, cwd=HERE, check=True)


@pytest.fixture(scope="module")
def stand(models: None, tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return stand_in(tmp_path_factory.mktemp("stand"))


@pytest.fixture(scope="module")
def running(stand: Stand) -> Iterator[Publisher]:
    with stand.publisher() as publisher:
        yield publisher


@pytest.fixture
def publisher(running: Publisher, stand: Stand) -> Publisher:
    """The publisher, which publishes release 2."""
    running.publish(stand.shelf.directory, INSTALLED)
    return running


@pytest.fixture(scope="module")
def base(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with release 1 and then 2."""
    store = tmp_path_factory.mktemp("base") / "store"
    store.mkdir()
    for version in (1, INSTALLED):
        install(store, *stand.shelf.files(version))
    return store


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(base, tmp_path / "store")


def now() -> datetime:
    return datetime.now(UTC)


def version_in(store: Path) -> int:
    found = load(store)
    return found.release.version if found else 0


# --- what is trained and signed -------------------------------------------------------------------


def test_the_network_is_a_quarter_of_its_size_and_gives_the_same_labels(stand: Stand) -> None:
    rows, digits = held_out()
    full = (HERE / "models/full.onnx").read_bytes()
    of_full = np.asarray(predict(full, rows.tolist())).argmax(axis=1)
    of_ours = stand.answers[INSTALLED].argmax(axis=1)
    assert len(stand.shelf.network) <= 0.28 * len(full)
    assert np.mean(of_full == of_ours) >= 0.995
    assert np.mean(of_ours == digits) >= 0.98


def test_weights_are_int8_and_become_float_by_cast_and_mul(stand: Stand) -> None:
    graph = onnx.load_from_string(stand.shelf.network).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds[:6] == ["Cast", "Mul"] * 3
    assert "DequantizeLinear" not in kinds
    large = [each for each in graph.initializer if np.prod(each.dims) > 1_000]
    assert {each.data_type for each in large} == {onnx.TensorProto.INT8}


def test_only_the_public_half_of_the_key_is_written(models: None) -> None:
    written = sorted(path.name for path in (HERE / "models").iterdir())
    assert written == ["full.onnx", "held_out.npz", "metadata.json", "public_key", "releases"]
    assert re.fullmatch(r"[0-9a-f]{64}", (HERE / "models/public_key").read_text())
    for path in (HERE / "models/releases").iterdir():
        assert re.fullmatch(r"\d\.json|[0-9a-f]{64}", path.name)


def test_release_4_is_the_model_of_release_1_and_3_is_wrong(models: None, tmp_path: Path) -> None:
    releases = HERE / "models/releases"
    key = key_of(HERE / "models/public_key")
    signed = {
        version: release_of(payload_of((releases / f"{version}.json").read_bytes(), key))
        for version in (1, 2, 3, 4)
    }
    assert signed[1].model == signed[4].model
    assert [signed[version].version for version in signed] == [1, 2, 3, 4]
    wrong = predict((releases / signed[3].model.sha256).read_bytes(), signed[3].golden["rows"])
    assert np.abs(np.asarray(wrong) - signed[3].golden["probabilities"]).max() > 0.1


def test_an_envelope_is_the_one_of_dsse(stand: Stand) -> None:
    content = json.loads((stand.shelf.directory / "releases/2.json").read_bytes())
    envelope = Envelope.from_dict(content)
    assert envelope.verify([stand.shelf.key.public_key], 1)
    assert envelope.payload == stand.shelf.files(INSTALLED)[0]


# --- the publisher --------------------------------------------------------------------------------


def get(publisher: Publisher, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{publisher.url}{path}", headers=headers, trust_env=False)


@pytest.mark.parametrize(
    ("path", "media_type", "cached"),
    [
        ("/", "text/html; charset=utf-8", "no-cache"),
        ("/page.js", "text/javascript; charset=utf-8", "no-cache"),
        ("/worker.js", "text/javascript; charset=utf-8", "no-cache"),
        ("/manifest.webmanifest", "application/manifest+json", "no-cache"),
        ("/icon.svg", "image/svg+xml", "no-cache"),
        ("/runtime/ort-wasm-simd-threaded.wasm", "application/wasm", "no-cache"),
        ("/releases/{model}", "application/octet-stream", "public, max-age=31536000, immutable"),
        (f"/channel?device={'0' * 32}&version=1", "application/json", "no-store"),
    ],
)
def test_each_kind_of_file_has_its_headers(
    publisher: Publisher, stand: Stand, path: str, media_type: str, cached: str
) -> None:
    answer = get(publisher, path.format(model=hex_digest(stand.shelf.network)))
    assert answer.status_code == 200
    headers = answer.headers
    assert (headers["content-type"], headers["cache-control"]) == (media_type, cached)
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; script-src 'self' 'wasm-unsafe-eval';")
    assert "unsafe-inline" not in policy
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"
    assert headers["x-content-type-options"] == "nosniff"


def test_the_runtime_is_sent_as_it_is_stored(publisher: Publisher) -> None:
    path = "/runtime/ort.wasm.min.mjs"
    stored = (HERE / "web/runtime/ort.wasm.min.mjs.gz").read_bytes()
    packed = get(publisher, path, **{"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) == len(stored)
    plain = get(publisher, path, **{"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == packed.content == gzip.decompress(stored)


def test_what_the_browser_has_is_not_sent_again(publisher: Publisher) -> None:
    tag = get(publisher, "/page.js").headers["etag"]
    again = get(publisher, "/page.js", **{"if-none-match": tag})
    assert (again.status_code, again.content) == (304, b"")
    assert get(publisher, "/page.js", **{"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/releases/../..",
        "/releases/../public_key",
        "/releases/%2e%2e/%2e%2e/Pipfile",
        "/..%2fpublisher/main.py",
        "/releases/2.json",
        "/runtime/../index.html",
        "//etc/passwd",
        "/index.html",
    ],
)
def test_no_other_path_has_a_file(publisher: Publisher, path: str) -> None:
    connection = http.client.HTTPConnection(publisher.url.removeprefix("http://"))
    with closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        expected = {"detail": "there is no such file"}
        assert (answer.status, json.loads(answer.read())) == (404, expected)


@pytest.mark.parametrize(
    "query",
    ["", "device=1&version=1", f"device={'0' * 32}&version=-1", f"device={'g' * 32}&version=1"],
)
def test_a_device_has_to_name_itself(publisher: Publisher, query: str) -> None:
    assert get(publisher, f"/channel?{query}").status_code == 422


def test_the_worker_changes_with_every_file(models: None, tmp_path: Path) -> None:
    web = shutil.copytree(HERE / "web", tmp_path / "web")
    before = read_app(web, HERE / "models")["/worker.js"].content
    assert read_app(web, HERE / "models")["/worker.js"].content == before
    with (web / "style.css").open("a") as file:
        file.write("\n")
    assert read_app(web, HERE / "models")["/worker.js"].content != before
    listed = json.loads(before.decode().partition("const FILES = ")[2].partition(";\n")[0])
    assert {"/", "/public_key", "/runtime/ort-wasm-simd-threaded.wasm"} < set(listed)
    for path, file_ in read_app(HERE / "web", HERE / "models").items():
        if path != "/worker.js":
            digest = base64.b64encode(sha256(file_.content).digest()).decode()
            assert listed[path] == f"sha256-{digest}"


def test_what_is_missing_is_named_at_the_start(models: None, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"no release 9; there are: 1, 2, 3, 4$"):
        read_channel(HERE / "models", 9)
    with pytest.raises(PublishError, match="run make up"):
        read_app(tmp_path, HERE / "models")


def test_the_fleet_counts_a_device_once(publisher: Publisher) -> None:
    before = publisher.versions().get("7", 0)
    for device in ("a" * 32, "b" * 32, "a" * 32):
        get(publisher, f"/channel?device={device}&version=7")
    assert publisher.versions()["7"] == before + 2


def test_a_file_without_gzip_is_not_encoded() -> None:
    file = files.File(b"a", "text/css", files.REVALIDATE)
    status, content, headers = headers_of(file, "gzip", "")
    assert (status, content, "content-encoding" in headers) == (200, b"a", False)


# --- updates of the Python device -----------------------------------------------------------------


@pytest.mark.parametrize("name", REASONS)
def test_a_bad_release_is_refused(
    name: str, publisher: Publisher, stand: Stand, store: Path
) -> None:
    before = sorted(path.relative_to(store) for path in store.rglob("*"))
    publisher.publish(*stand.bad[name])
    with pytest.raises(RefusedError, match=f"^{re.escape(REASONS[name])}"):
        update(store, stand.source(), now())
    assert version_in(store) == INSTALLED
    assert sorted(path.relative_to(store) for path in store.rglob("*")) == before


def test_there_are_twelve_and_without_checks_they_are_taken(
    publisher: Publisher, stand: Stand, tmp_path: Path
) -> None:
    """The control."""
    assert stand.bad.keys() == REASONS.keys()
    taken = 0
    for directory, version in stand.bad.values():
        publisher.publish(directory, version)
        taken += take_unchecked(tmp_path, stand.source())
    assert taken >= 9


def test_a_newer_release_is_taken_once_and_the_one_before_is_kept(
    publisher: Publisher, stand: Stand, store: Path
) -> None:
    publisher.publish(stand.shelf.directory, NEWEST)
    taken = update(store, stand.source(), now())
    assert taken
    assert taken.release.version == NEWEST
    assert update(store, stand.source(), now()) is None
    assert roll_back(store).release.version == INSTALLED
    # What was left is not taken again by itself.
    assert update(store, stand.source(), now()) is None
    assert version_in(store) == INSTALLED
    assert len([path for path in store.iterdir() if path.is_dir()]) == 2


def test_the_publisher_goes_back_by_a_newer_release_of_the_old_model(
    publisher: Publisher, stand: Stand, store: Path, tmp_path: Path
) -> None:
    publisher.publish(stand.shelf.add(5, stand.shelf.regression, tmp_path / "back"), 5)
    taken = update(store, stand.source(), now())
    assert taken
    found = taken.model.run(stand.rows.tolist())
    assert np.abs(found - stand.answers[1]).max() <= 1e-6


def test_without_a_release_before_there_is_no_way_back(stand: Stand, tmp_path: Path) -> None:
    install(tmp_path, *stand.shelf.files(1))
    with pytest.raises(RefusedError, match="no release before"):
        roll_back(tmp_path)


def test_damaged_files_leave_the_release_before(store: Path) -> None:
    pointer = read_pointer(store)
    assert pointer
    (store / pointer.current / "model.onnx").write_bytes(b"damaged")
    assert version_in(store) == 1
    (store / str(pointer.before) / "release.json").unlink()
    assert version_in(store) == 0


def test_a_clock_in_the_future_says_which_day_it_has(stand: Stand, store: Path) -> None:
    payload = stand.shelf.files(NEWEST)[0]
    future = now() + timedelta(days=4_000)
    with pytest.raises(RefusedError, match=f"this clock says {future.date()}"):
        check(payload, read_pointer(store), future, 1_000_000)


def test_a_clock_in_the_past_makes_no_expired_release_valid(
    publisher: Publisher, stand: Stand, store: Path
) -> None:
    publisher.publish(*stand.bad["expired"])
    past = datetime(2020, 6, 1, tzinfo=UTC)
    with pytest.raises(RefusedError, match="it has expired"):
        update(store, stand.source(), past)
    publisher.publish(stand.shelf.directory, NEWEST)
    assert update(store, stand.source(), past)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"version": 3}', b"\xff", b"null"])
def test_a_payload_of_another_form_is_refused(payload: bytes) -> None:
    with pytest.raises(RefusedError, match="the payload cannot be read"):
        check(payload, None, now(), 1_000_000)


@pytest.mark.parametrize(
    "envelope", [b"", b"[]", b"{}", b'{"payload": 1}', b'{"payload": "", "payloadType": ""}']
)
def test_an_envelope_of_another_form_is_refused(envelope: bytes, stand: Stand) -> None:
    with pytest.raises(RefusedError, match="the envelope cannot be read"):
        payload_of(envelope, stand.source().key)


def test_a_share_of_the_fleet_gets_a_release_first(
    publisher: Publisher, stand: Stand, store: Path, tmp_path: Path
) -> None:
    names = [f"{number:032x}" for number in range(1_000)]
    # Four standard deviations of a binomial distribution.
    assert abs(sum(is_among(0.3, name, 3) for name in names) - 300) <= 58
    assert all(is_among(1, name, 3) and not is_among(0, name, 3) for name in names)
    publisher.publish(stand.shelf.add(5, stand.shelf.network, tmp_path / "few", share=0.0), 5)
    with pytest.raises(RefusedError, match="version 5 is for 0% of the fleet"):
        update(store, stand.source(), now())


def test_a_body_that_is_too_large_is_not_read(publisher: Publisher) -> None:
    url = f"{publisher.url}/runtime/ort-wasm-simd-threaded.wasm"
    assert len(fetch(url, 1_000, 60)) == 1_001


@contextmanager
def trickling() -> Iterator[str]:
    """A publisher that sends a byte whenever it is asked to hurry."""

    class Slow(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(10_000)
            self.request.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            try:
                while True:
                    self.request.sendall(b"x")
            except OSError:
                pass

    class Server(ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Slow) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_publisher_that_never_ends_is_given_up() -> None:
    with trickling() as url, pytest.raises(TimeoutError, match="too slow"):
        fetch(url, 10**12, 0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process with ONNX Runtime")
def test_a_kill_at_any_file_operation_leaves_a_whole_release(
    stand: Stand, store: Path, tmp_path: Path
) -> None:
    files_of_new = stand.shelf.files(NEWEST)
    valid, operations = in_python.kill_everywhere(
        store,
        lambda work: install(work, *files_of_new),
        lambda work: in_python.is_whole(work, stand.rows, stand.answers),
    )
    assert valid == operations >= 5
    # The control: an update in place.
    in_place = tmp_path / "in-place"
    in_place.mkdir()
    install_in_place(in_place, *stand.shelf.files(1))
    valid, operations = in_python.kill_everywhere(
        in_place,
        lambda work: install_in_place(work, *files_of_new),
        in_python.is_whole_in_place,
    )
    assert valid < operations


def test_the_device_predicts_without_sockets_and_a_client_does_not(
    stand: Stand, store: Path, publisher: Publisher
) -> None:
    installed = load(store)
    assert installed
    rows = stand.rows[:20].tolist()
    answered, sockets = in_python.offline_of(lambda: len(installed.model.run(rows)))
    assert (answered, sockets) == (20, 0)
    address = publisher.url.removeprefix("http://")
    assert ask_server(address, rows) == 20
    answered, sockets = in_python.offline_of(lambda: ask_server(address, rows))
    assert answered == 0
    assert sockets >= 20


# --- the process of the device --------------------------------------------------------------------


def device(stand: Stand, directory: Path, **variables: str) -> AbstractContextManager[Process]:
    """Runs the device as Compose does, with a store of its own."""
    compose = load_compose(HERE)
    launch = launch_of(compose, compose.services["device"])
    own = {
        "PUBLISHER_URL": f"http://127.0.0.1:{stand.port}",
        "STORE_DIRECTORY": str(directory / "store"),
        "ALIVE_FILE": str(directory / "alive"),
        "PUBLIC_KEY_FILE": str(stand.shelf.directory / "public_key"),
        "UPDATE_INTERVAL_SECONDS": "0.2",
    }
    environment = {**launch.environment, **own, **variables}
    return Process(launch.command, cwd=HERE, log=directory / "log", env=environment)


def logs(directory: Path, pattern: str) -> None:
    log = directory / "log"
    wait_until(lambda: re.search(pattern, log.read_text()) is not None, f"{pattern} in {log}")


def test_a_device_starts_without_a_publisher_updates_and_stops(
    stand: Stand, publisher: Publisher, tmp_path: Path
) -> None:
    with device(stand, tmp_path, PUBLISHER_URL="http://127.0.0.1:9") as process:
        logs(tmp_path, "version 0 has predicted 0 rows; no update: URLError")
        wait_until((tmp_path / "alive").exists, "the device to work")
        assert process.stop() == 0
        assert not (tmp_path / "alive").exists()
    with device(stand, tmp_path) as process:
        logs(tmp_path, f"updated to version {INSTALLED}")
        logs(tmp_path, f"version {INSTALLED} has predicted [1-9][0-9]* rows; up to date")
        if sys.platform == "linux":
            limits = Path(f"/proc/{process.process.pid}/limits").read_text()
            assert re.search(rf"Max address space +{192 * 2**20} ", limits)
        publisher.publish(*stand.bad["model"])
        logs(tmp_path, "refused: its SHA-256 is another one")
        # A loss of power.
        process.process.send_signal(signal.SIGKILL)
        process.process.wait()
    (tmp_path / "log").write_text("")
    with device(stand, tmp_path, PUBLISHER_URL="http://127.0.0.1:9") as process:
        logs(tmp_path, f"version {INSTALLED} has predicted [1-9][0-9]* rows; no update")


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().address_space_mb == 192
    monkeypatch.setenv("ADDRESS_SPACE_MB", "500")
    monkeypatch.setenv("STORE_DIRECTORY", "elsewhere")
    assert (Settings().address_space_mb, Settings().store_directory) == (500, Path("elsewhere"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to the ceiling")
def test_what_trains_does_not_start_in_the_memory_of_a_device() -> None:
    command = [sys.executable, "-c", WITHIN.format(192) + TRAINING]
    try:
        # It may spin instead of failing.
        ended = subprocess.run(command, cwd=HERE, capture_output=True, check=False, timeout=30)
        assert ended.returncode != 0
    except subprocess.TimeoutExpired:
        pass
    subprocess.run([sys.executable, "-c", TRAINING], cwd=HERE, capture_output=True, check=True)


# --- the page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Playwright, models: None) -> Iterator[Browser]:
    with run_browser(playwright) as started:
        yield started


@contextmanager
def opened(
    browser: Browser, url: str, script: str = "", expected: Sequence[str] = (), **settings: Any
) -> Iterator[Page]:
    """Opens the page in a browser that was never here, and waits until it has asked for an update.

    Without its service worker, it starts in half the time. `script` runs before the page.
    """
    options = {"service_workers": "block", "viewport": {"width": 1280, "height": 900}} | settings
    with browser.new_context(**options) as context:
        if script:
            context.add_init_script(script)
        page = context.new_page()
        with without_errors(page, expected):
            page.goto(url)
            settled(page)
            yield page


def news(page: Page) -> str:
    return page.inner_text("#news")


@needs_browser
def test_the_page_says_of_each_bad_release_what_the_device_says(
    browser: Browser, publisher: Publisher, stand: Stand, store: Path
) -> None:
    with opened(browser, publisher.url) as page:
        assert news(page) == f"Updated to version {INSTALLED}."
        for name, reason in REASONS.items():
            publisher.publish(*stand.bad[name])
            assert ask(page) == "refused", name
            assert news(page).startswith(f"Update refused: {reason}"), name
            assert news(page).endswith(f" Version {INSTALLED} stays."), name
            # The message of ONNX Runtime is another one in each.
            if reason != "self-test: ":
                with pytest.raises(RefusedError) as refused:
                    update(store, stand.source(), now())
                assert news(page) == f"Update refused: {refused.value}. Version {INSTALLED} stays."
            assert version_of(page) == INSTALLED
        # And both choose the same devices for a first share.
        names = [f"{number:032x}" for number in range(50)]
        script = """async (names) => {
          const { isAmong } = await import("/update.js");
          return Promise.all(names.map((name) => isAmong(0.4, name, 3)));
        }"""
        assert page.evaluate(script, names) == [is_among(0.4, name, 3) for name in names]


@needs_browser
def test_a_person_draws_by_keyboard_goes_back_and_forth_and_updates(
    browser: Browser, publisher: Publisher, stand: Stand
) -> None:
    publisher.publish(stand.shelf.directory, 1)
    with opened(browser, publisher.url) as page:
        assert page.inner_text("#says") == "Draw a digit from 0 to 9."
        assert page.get_by_role("button", name="Back to the model before").is_disabled()
        publisher.publish(stand.shelf.directory, INSTALLED)
        assert (ask(page), version_of(page)) == ("updated", 2)
        page.get_by_role("button", name="Back to the model before").click()
        poll(page, in_browser.STATE, lambda state: state == "back")
        assert version_of(page) == 1
        # What was left is not taken again by itself.
        assert (ask(page), version_of(page)) == ("current", 1)
        page.locator("#paper").focus()
        for key in ("Space", *["ArrowDown"] * 14, "Space"):
            page.keyboard.press(key)
        assert "looks like a 1 " in poll(page, SAYS, lambda text: "looks like" in text)
        page.keyboard.press("Escape")
        poll(page, SAYS, lambda text: text == "Draw a digit from 0 to 9.")
        # Every control has a name for a screen reader, and what is said is announced.
        assert all(page.get_by_role("button").evaluate_all("all => all.map(a => a.innerText)")[:3])
        assert page.get_by_role("meter", name="probability of 9").count() == 1
        assert page.locator("#says").get_attribute("role") == "status"


SAYS = "() => document.querySelector('#says').textContent"


@needs_browser
def test_the_policy_stops_a_request_to_another_address(
    browser: Browser, publisher: Publisher
) -> None:
    script = """(url) => fetch(url, { mode: "no-cors" }).then(() => "sent", () => "stopped")"""
    with trickling() as other:
        with opened(browser, publisher.url, expected=["Content Security Policy"]) as page:
            assert page.evaluate(script, other) == "stopped"
            assert page.evaluate("() => crossOriginIsolated")
        # The control: the address can be reached.
        with browser.new_page() as page:
            assert page.evaluate(script, other) == "sent"


@needs_browser
@pytest.mark.parametrize(
    ("script", "says", "stays"),
    [
        (
            "delete window.WebAssembly",
            "This page cannot predict: this browser has no WebAssembly, which runs the model.",
            "",
        ),
        (
            """SubtleCrypto.prototype.importKey = () =>
              Promise.reject(new DOMException("", "NotSupportedError"))""",
            "Loading the model …",
            "Update refused: this browser cannot verify a signature (Ed25519).",
        ),
        (
            f"Date.now = () => {4_000_000_000_000}",
            "Loading the model …",
            "Update refused: it has expired on ",
        ),
    ],
    ids=["no WebAssembly", "no Ed25519", "a wrong clock"],
)
def test_a_browser_that_cannot_says_so(
    browser: Browser, publisher: Publisher, script: str, says: str, stays: str
) -> None:
    with opened(browser, publisher.url, script) as page:
        assert page.inner_text("#says") == says
        assert news(page).startswith(stays)
        assert page.get_by_role("heading", name="Digits on this device").is_visible()


@needs_browser
@pytest.mark.parametrize("width", [320, 412, 1280])
def test_the_page_fits(browser: Browser, publisher: Publisher, width: int) -> None:
    size = ViewportSize(width=width, height=840)
    with browser.new_context(viewport=size, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(publisher.url)
        assert "needs JavaScript" in page.inner_text("body")
        box = page.locator("main").bounding_box()
        assert box
        assert 0 <= box["x"] <= box["x"] + box["width"] <= width
        # On a phone, what is drawn and the answer are in sight together.
        says = page.locator("#says").bounding_box()
        assert says
        assert says["y"] + says["height"] < 840


@needs_browser
def test_where_and_how_large_a_digit_is_drawn_does_not_matter(
    browser: Browser, publisher: Publisher
) -> None:
    script = """async (all) => {
      const { pixelsOf } = await import("/draw.js");
      return all.map((strokes) => pixelsOf(strokes) && [...pixelsOf(strokes)]);
    }"""
    seven = DRAWINGS["7"]
    moved = [[[x / 4 + 0.5, y / 4 + 0.25] for x, y in stroke] for stroke in seven]
    with browser.new_page() as page:
        page.goto(f"{publisher.url}/public_key")
        drawn, small, nothing, dot = page.evaluate(script, [seven, moved, [], [[[0.5, 0.5]]]])
    assert (drawn, nothing) == (small, None)
    assert len(drawn) == 64
    assert max(drawn) == 16
    # A dot is as wide as the pen, in the middle.
    assert 20 <= sum(dot) <= 28


@needs_browser
@pytest.mark.slow
def test_the_page_is_installable_and_opens_without_the_publisher(
    playwright: Playwright, stand: Stand, tmp_path: Path
) -> None:
    other = stand._replace(port=free_port())
    with (
        other.publisher(INSTALLED) as publisher,
        visiting(playwright, tmp_path, publisher.url) as first,
    ):
        session = first.page.context.new_cdp_session(first.page)
        assert session.send("Page.getInstallabilityErrors") == {"installabilityErrors": []}
        assert publisher.sent()["bytes"] <= 4_200_000
        before = publisher.sent()["requests"]
        assert in_browser.draw_and_read(first.page, DRAWINGS) == 10
        assert publisher.sent()["requests"] == before
    with visiting(playwright, tmp_path, publisher.url, [OUT_OF_REACH]) as offline:
        assert (offline.state, version_of(offline.page)) == ("offline", INSTALLED)
        assert in_browser.draw_and_read(offline.page, {"7": DRAWINGS["7"]}) == 1


@needs_browser
@pytest.mark.slow
def test_a_new_app_is_taken_and_its_runtime_is_not_fetched_again(
    playwright: Playwright, stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = shutil.copytree(HERE / "web", tmp_path / "web")
    monkeypatch.setenv("WEB_DIRECTORY", str(web))
    other = stand._replace(port=free_port())
    profile = tmp_path / "profile"
    with other.publisher(INSTALLED) as publisher, visiting(playwright, profile, publisher.url):
        pass
    page_file = web / "index.html"
    page_file.write_text(page_file.read_text().replace("Digits on this device", "Another app"))
    with other.publisher(INSTALLED) as publisher:
        with visiting(playwright, profile, publisher.url) as again:
            # The whole app of before, until the new one is whole.
            assert again.page.title() == "Digits on this device"
            wait_until(lambda: publisher.sent()["requests"] >= 2, "the new app to be fetched")
            script = """() => navigator.serviceWorker.getRegistration().then((r) => !!r.waiting)"""
            poll(again.page, script)
        with visiting(playwright, profile, publisher.url) as new:
            assert new.page.title() == "Another app"
        assert publisher.sent()["bytes"] < 500_000


@needs_browser
@pytest.mark.slow
def test_two_tabs_that_update_at_once_fetch_the_model_once(
    browser: Browser, publisher: Publisher, stand: Stand
) -> None:
    publisher.publish(stand.shelf.directory, 1)
    with opened(browser, publisher.url) as first:
        second = first.context.new_page()
        second.goto(publisher.url)
        settled(second)
        asked: list[str] = []
        first.context.on("request", lambda request: asked.append(request.url))
        publisher.publish(stand.shelf.directory, INSTALLED)
        for page in (first, second):
            page.evaluate("() => document.querySelector('#update').click()")
        states = sorted(settled(page) for page in (first, second))
        assert states in (["current", "updated"], ["updated", "updated"])
        assert len([url for url in asked if hex_digest(stand.shelf.network) in url]) == 1
        second.reload()
        settled(second)
        assert (version_of(first), version_of(second)) == (INSTALLED, INSTALLED)


@needs_browser
@pytest.mark.slow
def test_a_full_storage_leaves_the_old_model(
    browser: Browser, publisher: Publisher, stand: Stand
) -> None:
    """A simulation: Chromium keeps to its own quota, whatever its debugger tells it."""
    script = """
      const put = IDBObjectStore.prototype.put;
      IDBObjectStore.prototype.put = function (...values) {
        if (window.full) throw new DOMException("", "QuotaExceededError");
        return put.apply(this, values);
      };
    """
    publisher.publish(stand.shelf.directory, 1)
    with opened(browser, publisher.url, script) as page:
        publisher.publish(stand.shelf.directory, INSTALLED)
        page.evaluate("() => { window.full = true }")
        assert (ask(page), version_of(page)) == ("full", 1)
        assert news(page) == "There is no room for the update. Version 1 stays."
        page.evaluate("() => { window.full = false }")
        assert (ask(page), version_of(page)) == ("updated", INSTALLED)


@needs_browser
@pytest.mark.slow
def test_damaged_files_leave_the_model_before_in_the_page(
    browser: Browser, publisher: Publisher, stand: Stand
) -> None:
    publisher.publish(stand.shelf.directory, 1)
    damage = """() => new Promise((resolve) => {
      indexedDB.open("edge").onsuccess = ({ target }) => {
        const change = target.result.transaction(["files", "state"], "readwrite");
        change.objectStore("state").get("pointer").onsuccess = ({ target }) =>
          change.objectStore("files").put(new Uint8Array(9), `${target.result.current}/model`);
        change.oncomplete = resolve;
      };
    })"""
    with opened(browser, publisher.url) as page:
        publisher.publish(stand.shelf.directory, INSTALLED)
        ask(page)
        page.evaluate(damage)
        page.reload()
        settled(page)
        assert version_of(page) == 1


@needs_browser
@pytest.mark.slow
def test_without_ed25519_the_installed_model_goes_on_predicting(
    browser: Browser, publisher: Publisher, stand: Stand
) -> None:
    script = """SubtleCrypto.prototype.importKey = () =>
      Promise.reject(new DOMException("", "NotSupportedError"))"""
    with opened(browser, publisher.url) as page:
        page.context.add_init_script(script)
        page.reload()
        assert settled(page) == "refused"
        assert news(page) == (
            "Update refused: this browser cannot verify a signature (Ed25519). Version 2 stays."
        )
        found, _ = in_browser.predict(page, stand.rows[:3])
        assert np.abs(found - stand.answers[INSTALLED][:3]).max() <= 1e-6


# --- the visitor ----------------------------------------------------------------------------------


def test_the_visitor_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "BROWSERS", ("no-such-browser",))
    with pytest.raises(SystemExit, match="apt install chromium"):
        visit.browser()


def test_the_varied_drawings_are_the_same_every_time() -> None:
    assert in_browser.varied(20) == in_browser.varied(20)
    assert [digit for digit, _ in in_browser.varied(20)] == [*range(10)] * 2


@needs_browser
@pytest.mark.slow
def test_the_controls_of_the_page_go_red(
    browser: Browser, publisher: Publisher, stand: Stand
) -> None:
    """Another release is not as in Python, and a wrong drawing is not read as it is meant."""
    with opened(browser, publisher.url, has_touch=True) as page:
        found, _ = in_browser.predict(page, stand.rows[:50])
        assert in_browser.count_equal(found, stand.answers[INSTALLED][:50]) == 50
        assert in_browser.count_equal(found, stand.answers[1][:50]) < 50
        assert in_browser.draw_and_read(page, {"3": DRAWINGS["7"]}) == 0
