"""Stands in for curl where there is none: the options that the READMEs use, on top of httpx.

Output and exit codes are curl's. An option that is not known here is an error, never ignored.
"""

import contextlib
import getopt
import itertools
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import httpx

# The long name of each option, with `=` where it takes a value, and its letter where it has one.
OPTIONS = {
    "data=": "d",
    "data-binary=": "",
    "fail": "f",
    "header=": "H",
    "include": "i",
    "json=": "",
    "max-time=": "m",
    "no-buffer": "N",
    "output=": "o",
    "request=": "X",
    "show-error": "S",
    "silent": "s",
    "write-out=": "w",
}
LETTERS = "".join(letter + ":" * ("=" in name) for name, letter in OPTIONS.items() if letter)
LONG_NAMES = {f"-{letter}": f"--{name.rstrip('=')}" for name, letter in OPTIONS.items() if letter}
DATA_OPTIONS = ("--data", "--data-binary", "--json")

Options = list[tuple[str, str]]


class CurlError(Exception):
    """A failure with the exit code that curl has for it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def run(options: Options, urls: list[str]) -> int:
    """Makes a request to each URL; gives the exit code of the last one, as curl does."""
    if not urls:
        raise CurlError(2, "no URL specified")
    given = dict(options)
    body = request_body(options)
    headers = request_headers(options)
    method = given.get("--request", "GET" if body is None else "POST")
    seconds = given.get("--max-time", "0")
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", seconds):
        raise CurlError(2, f"option --max-time: {seconds} is not a number of seconds")
    write_out(given.get("--write-out", ""), status=0, seconds=0.0)
    outputs = [value for name, value in options if name == "--output"][: len(urls)]
    code = 0
    # The settings of a proxy are for the internet; a README talks to this machine.
    with httpx.Client(trust_env=False, timeout=httpx.Timeout(None)) as client:
        for url, output in itertools.zip_longest(urls, outputs):
            absolute = url if re.match(r"\w+://", url) else f"http://{url}"
            try:
                request = httpx.Request(method, absolute, headers=headers, content=body)
            except httpx.InvalidURL as error:
                raise CurlError(3, f"URL rejected: {url}: {error}") from error
            code = transfer(client, request, given, output, float(seconds))
    return code


def request_body(options: Options) -> bytes | None:
    """Joins what the data options give, None without any."""
    body = None
    for name, value in options:
        if name not in DATA_OPTIONS:
            continue
        data = read_data(value[1:]) if value.startswith("@") else value.encode()
        if name == "--data" and value.startswith("@"):
            data = re.sub(rb"[\r\n\0]", b"", data)
        body = data if body is None else body + (b"" if name == "--json" else b"&") + data
    return body


def read_data(name: str) -> bytes:
    """Reads the data of a request from a file or, for `-`, from standard input."""
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise CurlError(26, f"Failed to open {name}: {error.strerror}") from error


def request_headers(options: Options) -> list[tuple[bytes, bytes]]:
    """Gives curl's own headers, and those of the command line, which take their place."""
    names = {name for name, _ in options}
    headers = {"User-Agent": "curl", "Accept": "*/*"}
    if not names.isdisjoint(DATA_OPTIONS):
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if "--json" in names:
        headers |= {"Content-Type": "application/json", "Accept": "application/json"}
    own = []
    for header in [value for name, value in options if name == "--header"]:
        name, separator, value = header.partition(":")
        replaced = name.rstrip(";").lower()
        headers = {key: kept for key, kept in headers.items() if key.lower() != replaced}
        # `Name:` only takes curl's own header away; `Name;` sends one without a value.
        if value.strip() or (header.endswith(";") and not separator):
            own.append((name.rstrip(";"), value.strip()))
    return [(name.encode(), value.encode()) for name, value in [*headers.items(), *own]]


def transfer(
    client: httpx.Client,
    request: httpx.Request,
    given: dict[str, str],
    output: str | None,
    timeout_seconds: float,
) -> int:
    """Makes one request, writes its answer, and gives curl's exit code for it."""
    started = time.monotonic()
    code = status = received = 0
    try:
        with deadline(timeout_seconds), target(output) as out:
            try:
                with contextlib.closing(client.send(request, stream=True)) as response:
                    status = response.status_code
                    if "--include" in given:
                        out.write(head(response))
                    if "--fail" in given and status >= 400:
                        raise CurlError(22, f"The requested URL returned error: {status}")
                    for chunk in response.iter_raw():
                        received += len(chunk)
                        out.write(chunk)
                        out.flush()
            finally:
                out.flush()
    except (CurlError, httpx.TransportError, OSError) as error:
        milliseconds = round((time.monotonic() - started) * 1000)
        code, message = diagnosis(error, request.url, milliseconds, status, received)
        if "--silent" not in given or "--show-error" in given:
            print(f"curl: ({code}) {message}", file=sys.stderr)
    text = write_out(given.get("--write-out", ""), status, time.monotonic() - started)
    print(text, end="", flush=True)
    return code


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raises TimeoutError when the time is over; 0 is no limit. httpx limits single phases only."""

    def expire(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def target(output: str | None) -> AbstractContextManager[BinaryIO]:
    """Opens what an answer is written to."""
    if output is None or output == "-":
        return contextlib.nullcontext(sys.stdout.buffer)
    return Path(output).open("wb")


def head(response: httpx.Response) -> bytes:
    """Gives the status line and the headers as they were received."""
    lines = [f"{response.http_version} {response.status_code} {response.reason_phrase}".encode()]
    lines += [name + b": " + value for name, value in response.headers.raw]
    return b"\r\n".join([*lines, b"", b""])


def diagnosis(
    error: Exception, url: httpx.URL, milliseconds: int, status: int, received: int
) -> tuple[int, str]:
    """Gives curl's exit code and words for an error."""
    match error:
        case CurlError():
            return error.code, str(error)
        case TimeoutError() | httpx.TimeoutException():
            times = f"after {milliseconds} milliseconds with {received} bytes received"
            return 28, f"Operation timed out {times}"
        case httpx.UnsupportedProtocol():
            return 1, f'Protocol "{url.scheme}" not supported'
        case httpx.ConnectError():
            try:
                socket.getaddrinfo(url.host, None)
            except socket.gaierror:
                return 6, f"Could not resolve host: {url.host}"
            port = url.port or {"https": 443}.get(url.scheme, 80)
            times = f"after {milliseconds} ms: Couldn't connect to server"
            return 7, f"Failed to connect to {url.host} port {port} {times}"
        case httpx.RemoteProtocolError() if status == 0:
            return 52, "Empty reply from server"
        case httpx.RemoteProtocolError():
            return 18, "transfer closed with outstanding read data remaining"
        case OSError():
            return 23, f"Failed writing the output: {error.strerror}"
        case _:
            return 56, f"Recv failure: {error}"


def write_out(template: str, status: int, seconds: float) -> str:
    """Fills in what --write-out asks for."""
    values = {"http_code": f"{status:03}", "time_total": f"{seconds:.6f}"}
    values |= {r"\n": "\n", r"\t": "\t", "%%": "%"}

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[0]
        if name not in values:
            raise CurlError(2, f"option --write-out: unknown variable {found[0]}")
        return values[name]

    return re.sub(r"%\{(.*?)\}|%%|\\.", value, template)


def main() -> int:
    """Does what the command line asks for."""
    try:
        options, urls = getopt.gnu_getopt(sys.argv[1:], LETTERS, list(OPTIONS))
        return run([(LONG_NAMES.get(name, name), value) for name, value in options], urls)
    except getopt.GetoptError as error:
        print(f"curl: {error}", file=sys.stderr)
        return 2
    except CurlError as error:
        print(f"curl: ({error.code}) {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:
        # What is left in the buffer would raise again when the interpreter flushes it.
        sys.stdout = None
        return 23
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
