"""Runs tools/play/curl.py and the real curl side by side against a real server."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

OURS = [sys.executable, "-P", str(Path(__file__).resolve().parents[2] / "tools/play/curl.py")]
THEIRS = shutil.which("curl")


class Echo(BaseHTTPRequestHandler):
    """Answers with the request; the path says how: /status/404, /slow, /cut, /close, /empty."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Sends back what was received."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = sorted((name.lower(), value) for name, value in self.headers.items())
        sent = [header for header in headers if header[0] != "user-agent"]
        echo = f"{self.command} {self.path}\n{sent}\n{body!r}\n".encode()
        status = re.fullmatch(r"/status/(\d+)", self.path)
        if self.path == "/empty":
            echo = b""
        if self.path == "/close":
            self.close_connection = True
            return
        self.send_response_only(int(status[1]) if status else 200)
        self.send_header("X-Mixed-CASE", "kept  as it is")
        self.send_header("Content-Length", str(len(echo) + (self.path in ("/cut", "/slow"))))
        self.end_headers()
        self.wfile.write(echo)
        self.wfile.flush()
        if self.path == "/slow":
            # One byte is missing until the client gives up.
            with contextlib.suppress(ConnectionError):
                self.rfile.read(1)
        self.close_connection = self.path in ("/cut", "/slow")

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Keeps the log of requests out of the output of the tests."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Runs the server; gives its host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def free_port() -> int:
    """Finds a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def call(curl: list[str], line: list[str], directory: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a command line with data on standard input."""
    environment = {name: os.environ[name] for name in os.environ if "proxy" not in name.lower()}
    if curl is OURS:
        # It has to ignore this one, at which nobody listens.
        environment["http_proxy"] = "http://127.0.0.1:9"
    return subprocess.run(
        [*curl, *line],
        input=b"from\r\nstandard\ninput",
        capture_output=True,
        cwd=directory,
        env=environment,
        timeout=30,
        check=False,
    )


COMMAND_LINES = {
    "plain": (0, "-s URL/a?b=c"),
    "scheme": (0, "-s http://URL/a"),
    "include": (0, "-si URL/a"),
    "include_then_post": (0, "-sSi -d a=1 URL"),
    "data_joined": (0, "-s -d a=1 --data b=2 URL"),
    "data_with_newline": (0, "-s -d a\nb URL"),
    "data_empty": (0, "-s -d || URL"),
    "data_file": (0, "-s -d @lines.txt URL"),
    "data_stdin": (0, "-s -d @- URL"),
    "data_binary_file": (0, "-s --data-binary @lines.txt URL"),
    "data_binary_stdin": (0, "-s URL --data-binary @-"),
    "data_attached": (0, "-sda=1 URL"),
    "data_that_looks_like_an_option": (0, "-s -d -1 URL"),
    "data_and_put": (0, "-s -X PUT -d a URL"),
    "data_and_get": (0, "-s -XGET -d a URL"),
    "delete": (0, "-s --request DELETE URL/a"),
    "json": (0, '-s --json {"a":1} URL'),
    "json_twice": (0, "-s --json [1, --json 2] URL"),
    "data_then_json": (0, "-s -d a --json {} URL"),
    "json_with_own_type": (0, "-s --json {} -H content-type:a/b URL"),
    "headers": (0, "-s -H X-A:1 -H X-B:two --header X-A:3 URL"),
    "header_taken_away": (0, "-s -H Accept: -H Content-Type: -d a URL"),
    "header_without_value": (0, "-s -H X-Empty; URL"),
    "host": (0, "-s -H Host:elsewhere.example URL"),
    "several_urls": (0, "-s URL/a URL/b"),
    "several_outputs": (0, "-s -o one URL/a -o two URL/b URL/c"),
    "output": (0, "-s -o one URL/a"),
    "output_null": (0, "-s -o /dev/null -w %{http_code}\\n URL/status/503"),
    "output_dash": (0, "-s --output - URL"),
    "output_to_nowhere": (23, "-s -o missing/one URL"),
    "write_out": (0, "-s -w \\n%{http_code}\\t%%\\n URL/a URL/status/404"),
    "error_status": (0, "-s URL/status/500"),
    "fail": (22, "-sf URL/status/404"),
    "fail_not": (0, "-sf URL/status/399"),
    "fail_include": (22, "-s -i --fail URL/status/422 -w %{http_code}"),
    "fail_post": (22, "-sfd x URL/status/500"),
    "fail_first_of_two": (0, "-sf URL/status/404 URL"),
    "fail_last_of_two": (22, "-sf URL URL/status/404"),
    "refused": (7, "-s REFUSED"),
    "refused_write_out": (7, "-s -w %{http_code}\\n REFUSED"),
    "refused_first_of_two": (0, "-s REFUSED URL"),
    "unknown_host": (6, "-s http://nowhere.invalid/"),
    "max_time": (28, "-s --max-time 0.5 URL/slow"),
    "max_time_not_reached": (0, "-s -m 20 URL"),
    "max_time_no_number": (2, "-s -m soon URL"),
    "no_buffer": (0, "-sN URL"),
    "unknown_option": (2, "-s --no-such-option URL"),
    "unknown_letter": (2, "-s? URL"),
    "no_value": (2, "-s URL --data"),
    "no_url": (2, "-s"),
    "malformed_url": (3, "-s http://127.0.0.1:port/"),
    "cut": (18, "-s URL/cut"),
    "closed": (52, "-s URL/close"),
    "empty": (0, "-si URL/empty"),
}


def words(template: str, server: str, free_port: int) -> list[str]:
    """Splits a command line at its blanks; `||` is an empty word."""
    filled = template.replace("URL", server).replace("REFUSED", f"127.0.0.1:{free_port}")
    return [word.replace("||", "") for word in filled.split(" ")]


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_a_command_line_does_what_it_does_with_the_real_curl(
    name: str, server: str, free_port: int, tmp_path: Path
) -> None:
    code, template = COMMAND_LINES[name]
    done = []
    for number, curl in enumerate([OURS, [THEIRS]] if THEIRS else [OURS]):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "lines.txt").write_bytes(b"one\ntwo\r\n")
        result = call(curl, words(template, server, free_port), directory)
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        done.append((result.returncode, result.stdout, files))
    assert done[0][0] == code
    if THEIRS is None:
        pytest.skip("the exit code is right; there is no curl on PATH to compare the output with")
    assert done[0] == done[1]


def test_a_post_arrives_as_it_was_written(server: str, tmp_path: Path) -> None:
    line = ["-s", "-H", "X-A: 1", "--json", '{"data": [[1, 2]]}', f"{server}/predict"]
    result = call(OURS, line, tmp_path)
    assert result.returncode == 0
    command, headers, body = result.stdout.decode().splitlines()
    assert command == "POST /predict"
    assert body == repr(b'{"data": [[1, 2]]}')
    for header in [("accept", "application/json"), ("content-type", "application/json")]:
        assert repr(header) in headers
    assert repr(("x-a", "1")) in headers
    assert "encoding" not in headers


def test_the_time_is_that_of_the_whole_transfer(server: str, tmp_path: Path) -> None:
    line = ["-s", "-m", "0.5", "-o", "answer", "-w", "%{time_total}", f"{server}/slow"]
    result = call(OURS, line, tmp_path)
    assert result.returncode == 28
    assert re.fullmatch(rb"\d+\.\d{6}", result.stdout)
    assert float(result.stdout) >= 0.5
    # What came before the deadline is kept.
    assert (tmp_path / "answer").read_bytes().startswith(b"GET /slow\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-sS REFUSED", r"curl: \(7\) Failed to connect to 127\.0\.0\.1 port \d+ after \d+ ms: .+"),
        ("-fsS URL/status/404", r"curl: \(22\) The requested URL returned error: 404"),
        ("-s -f URL/status/404", ""),
        ("--fail URL/status/404", r"curl: \(22\) The requested URL returned error: 404"),
        ("-sS nowhere.invalid", r"curl: \(6\) Could not resolve host: nowhere\.invalid"),
        ("-sSm 0.3 URL/slow", r"curl: \(28\) Operation timed out after \d+ milliseconds with .+"),
        ("-s --compressed URL", r"curl: .*--compressed.*"),
        ("-s -w %{speed} URL", r"curl: .*%\{speed\}.*"),
        ("-s -d @missing URL", r"curl: \(26\) .*missing.*"),
        ("-s ftp://URL", ""),
    ],
)
def test_an_error_is_one_line_that_names_its_cause(
    line: str, message: str, server: str, free_port: int, tmp_path: Path
) -> None:
    result = call(OURS, words(line, server, free_port), tmp_path)
    assert result.returncode != 0
    assert re.fullmatch(message, result.stderr.decode().strip())


def test_a_stream_is_shown_as_it_comes(server: str) -> None:
    with subprocess.Popen([*OURS, "-sN", f"{server}/slow"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        # The answer never ends, yet its first line arrives.
        assert process.stdout.readline() == b"GET /slow\n"
        process.kill()


def test_a_reader_that_goes_away_is_no_traceback(server: str) -> None:
    line = f"{' '.join(OURS)} -s {server}/a {server}/b | true"
    result = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=30)
    assert result.stderr == b""
