"""Runs a server as a process, measures its CPU and memory, and measures several in turn."""

import http.client
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import psutil
from rich.console import Console
from rich.progress import Progress

POLL_SECONDS = 0.01
TAIL_LINES = 20

Measured = TypeVar("Measured", bound=float | Mapping[str, float])


class ServerError(RuntimeError):
    """The server could not be started, or ended unexpectedly."""


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    # From the start of the process to the first 200.
    start_seconds: float = 0.0
    asked_to_stop: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def cpu_seconds(self) -> float:
        """CPU time of the process and its children, including ended ones, in 10 ms steps."""
        return self._sum(cpu_seconds_of)

    def memory_mb(self) -> float:
        """Memory in MiB of the process and its children, counting shared pages once.

        This is the proportional set size on Linux; elsewhere it is the unique set size, which
        excludes shared pages.
        """
        return self._sum(memory_bytes_of) / 1024**2

    def terminate(self) -> None:
        """Sends SIGTERM, as Docker and Kubernetes do, without waiting."""
        self.asked_to_stop = True
        self.process.terminate()

    def kill(self) -> None:
        """Kills the process and its children."""
        self.asked_to_stop = True
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def wait(self, deadline_seconds: float) -> int:
        """Waits until the process ends and returns its exit code."""
        try:
            return self.process.wait(deadline_seconds)
        except subprocess.TimeoutExpired:
            raise ServerError(f"the server is still running after {deadline_seconds} s") from None

    def _sum(self, measure: Callable[[psutil.Process], float]) -> float:
        if self.process.poll() is not None:
            raise ServerError("the server has ended and cannot be measured")
        process = psutil.Process(self.pid)
        total = measure(process)
        for child in process.children(recursive=True):
            # A child may end meanwhile.
            with suppress(psutil.NoSuchProcess):
                total += measure(child)
        return total


def cpu_seconds_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def memory_bytes_of(process: psutil.Process) -> float:
    memory = process.memory_full_info()
    return float(getattr(memory, "pss", memory.uss))


@contextmanager
def serve(
    command: Sequence[str],
    *,
    cwd: Path,
    ready_url: str,
    port: int,
    env: Mapping[str, str] | None = None,
    cpus: set[int] | None = None,
    log: Path | None = None,
    deadline_seconds: float = 30,
    stop_seconds: float = 10,
) -> Iterator[Server]:
    """Starts a server, waits until `ready_url` returns 200, and stops it at the end of the block.

    `env` is added to this process's environment. `log` receives the server's output. It is an error
    if the server ends without having been stopped. At the end it has `stop_seconds` to shut down;
    then it and its children are killed.
    """
    if port_is_taken(port):
        raise ServerError(f"port {port} is in use: stop that program or choose another port")
    with ExitStack() as stack:
        if log is None:
            log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "server.log"
        output = stack.enter_context(log.open("wb"))
        began = time.perf_counter()
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ServerError(f"cannot start {command[0]} in {cwd}: {error}") from None
        server = Server(process, f"http://127.0.0.1:{port}", log)
        stack.callback(stop, server, stop_seconds)
        # Threads that the server starts later inherit this.
        if cpus is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, cpus)
        wait_until_ready(server, ready_url, began + deadline_seconds)
        server.start_seconds = time.perf_counter() - began
        try:
            yield server
        except Exception as error:
            if ended_by_itself(server):
                error.add_note(ending(server))
            raise
        if ended_by_itself(server):
            raise ServerError(ending(server))


def wait_until_ready(server: Server, ready_url: str, deadline: float) -> None:
    """Polls until the first 200, the end of the process, or the deadline."""
    answer = ""
    while time.perf_counter() < deadline:
        answer = answer_of(ready_url)
        if server.process.poll() is not None:
            raise ServerError(f"not ready: {ending(server)}")
        if answer == "200":
            return
        time.sleep(POLL_SECONDS)
    raise ServerError(f"not ready in time: {ready_url} returns {answer}\n{tail(server.log)}")


def answer_of(url: str) -> str:
    """Returns the status of a URL, or why there is no response."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=1)
    try:
        connection.request("GET", parts.path or "/")
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return f"nothing ({error or type(error).__name__})"
    finally:
        connection.close()


def stop(server: Server, stop_seconds: float) -> None:
    if server.process.poll() is None:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(stop_seconds)
    server.kill()


def ended_by_itself(server: Server) -> bool:
    return server.process.poll() is not None and not server.asked_to_stop


def ending(server: Server) -> str:
    return f"the server ended with exit code {server.process.returncode}\n{tail(server.log)}"


def tail(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    return "\n".join(f"  | {line}" for line in lines) or "  | (no output)"


def wait_until(condition: Callable[[], bool], what: str, deadline_seconds: float = 120) -> None:
    """Polls a condition until it is true; raises a TimeoutError at the deadline."""
    deadline = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {deadline_seconds:g} s for {what}")
        time.sleep(POLL_SECONDS)


@contextmanager
def suspended(server: Server) -> Iterator[None]:
    """Suspends a process, which still accepts connections and never responds."""
    process = psutil.Process(server.pid)
    process.suspend()
    try:
        # The signal is sent before the process has stopped.
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the process to stop")
        yield
    finally:
        process.resume()


def port_is_taken(port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(1)
        return caller.connect_ex(("127.0.0.1", port)) == 0


def interleave(
    arms: Mapping[str, Callable[[], Measured]], rounds: int
) -> dict[str, list[Measured]]:
    """Measures every arm once per round (A B A B), so that disturbances affect all arms alike."""
    measured: dict[str, list[Measured]] = {name: [] for name in arms}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=rounds * len(arms))
        for turn in range(1, rounds + 1):
            for name, measure in arms.items():
                progress.update(task, description=f"{name}, round {turn} of {rounds}")
                measured[name].append(measure())
                progress.advance(task)
    return measured


class Spread(NamedTuple):
    """The median and range of some measurements."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.least:.4g} to {self.most:.4g})"


def median_and_spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))
