"""Real processes that start, work, die, hang, ignore signals and leave children behind."""

import os
import signal
import socket
import sys
import time
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tools.measure.server import (
    Server,
    ServerError,
    interleave,
    median_and_spread,
    serve,
    suspended,
    wait_until,
)
from tools.run.ports import free_port

# Starts as its arguments say, then serves files.
SERVER = """
import os, signal, subprocess, sys, time
from http.server import HTTPServer, SimpleHTTPRequestHandler
port, *traits = sys.argv[1:]
print("traits", *traits, os.environ.get("TRAIT", ""), flush=True)
if "parent" in traits:
    child = subprocess.Popen([sys.executable, "-c", "import time; data = b'x' * 50_000_000; "
                              "print('child', flush=True); time.sleep(600)"], stdout=-1)
    child.stdout.readline()
    print("child", child.pid, flush=True)
if "busy child" in traits:
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.5: pass"])
if "ignores SIGTERM" in traits:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "dies" in traits:
    sys.exit("no model")
if "hangs" in traits:
    time.sleep(600)
HTTPServer(("127.0.0.1", int(port)), SimpleHTTPRequestHandler).serve_forever()
"""


def started(tmp_path: Path, *traits: str, **options: Any) -> AbstractContextManager[Server]:
    port = options.pop("port", free_port())
    path = options.pop("path", "/")
    return serve(
        [sys.executable, "-c", SERVER, str(port), *traits],
        cwd=tmp_path,
        ready_url=f"http://127.0.0.1:{port}{path}",
        port=port,
        **options,
    )


def status_of(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310
        return int(answer.status)


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, f"process {pid} still runs"
        time.sleep(0.01)


def test_a_server_runs_until_the_end_of_the_block(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with started(tmp_path, env={"TRAIT": "from env"}, log=log) as server:
        assert status_of(server.url) == 200
        assert 0 < server.start_seconds < 30
        # It has its own process group, so Ctrl-C in the terminal does not reach it.
        assert os.getpgid(server.pid) == server.pid != os.getpgid(0)
    assert not psutil.pid_exists(server.pid)
    assert server.process.returncode == -signal.SIGTERM
    assert "traits from env" in log.read_text()


def test_the_error_of_a_dead_server_has_exit_code_and_log(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"not ready: .* exit code 1\n(.*\n)*  \| no model"),
        started(tmp_path, "dies"),
    ):
        pytest.fail("a dead server is not ready")


@pytest.mark.parametrize(
    ("traits", "path", "answer"),
    [(["hangs"], "/", "nothing .*refused"), ([], "/ready", "404")],
)
def test_a_server_that_is_never_ready_is_stopped_with_the_reason(
    tmp_path: Path, traits: list[str], path: str, answer: str
) -> None:
    log = tmp_path / "server.log"
    with (
        pytest.raises(ServerError, match=rf"not ready in time: http.*{path} returns {answer}"),
        started(tmp_path, "parent", *traits, path=path, deadline_seconds=10, log=log),
    ):
        pytest.fail("it is not ready")
    wait_until_gone(int(log.read_text().partition("child ")[2].split()[0]))


def test_a_server_that_ends_unexpectedly_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match=r"exit code -9\n  \| traits quiet"),
        started(tmp_path, "quiet") as server,
    ):
        os.kill(server.pid, signal.SIGKILL)
        server.wait(30)


def test_an_error_caused_by_the_end_of_a_server_has_a_note(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="refused") as caught, started(tmp_path, "quiet") as server:
        os.kill(server.pid, signal.SIGKILL)
        server.wait(30)
        status_of(server.url)
    assert "exit code -9" in caught.value.__notes__[0]


def test_a_server_may_be_terminated_or_killed_on_purpose(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        server.terminate()
        assert server.wait(30) == -signal.SIGTERM
        with pytest.raises(ServerError, match="has ended"):
            server.cpu_seconds()
        with pytest.raises(ServerError, match="has ended"):
            server.memory_mb()
    with started(tmp_path) as server:
        server.kill()
        assert server.wait(30) == -signal.SIGKILL


def test_a_suspended_server_does_nothing_until_it_goes_on(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        process = psutil.Process(server.pid)
        for _ in range(20):
            with suspended(server):
                assert process.status() == psutil.STATUS_STOPPED
            assert status_of(server.url) == 200


def test_a_server_that_ignores_sigterm_is_killed_at_the_deadline(tmp_path: Path) -> None:
    with started(tmp_path, "ignores SIGTERM", stop_seconds=0.2) as server:
        server.terminate()
        with pytest.raises(ServerError, match=r"is still running after 0\.1 s"):
            server.wait(0.1)
    assert server.process.returncode == -signal.SIGKILL


def test_children_are_counted_and_end_with_their_parent(tmp_path: Path) -> None:
    with started(tmp_path) as alone:
        alone_mb = alone.memory_mb()
    with started(tmp_path, "parent") as server:
        [child] = psutil.Process(server.pid).children()
        # The child allocates 50 million bytes.
        assert server.memory_mb() > alone_mb + 47
    wait_until_gone(child.pid)


def test_the_cpu_time_of_the_server_and_of_ended_children_is_counted(tmp_path: Path) -> None:
    with started(tmp_path, "busy child") as server:
        before = server.cpu_seconds()
        assert before >= 0.5
        until = time.monotonic() + 60
        while server.cpu_seconds() < before + 0.1:
            assert time.monotonic() < until
            status_of(server.url)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux pins processes")
def test_a_server_runs_on_the_given_cores(tmp_path: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    with started(tmp_path, cpus={cpu}) as server:
        assert os.sched_getaffinity(server.pid) == {cpu}


def test_a_port_in_use_is_rejected(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(ServerError, match=f"port {port} is in use"),
            started(tmp_path, port=port),
        ):
            pytest.fail("the answers would come from somebody else")


def test_a_missing_command_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="cannot start no-such-server"),
        serve(["no-such-server"], cwd=tmp_path, ready_url="http://127.0.0.1/", port=free_port()),
    ):
        pytest.fail("there is nothing to start")


def test_free_ports_can_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        assert listener.getsockname()[1] > 0


def test_wait_until_returns_or_names_the_condition() -> None:
    answers = iter([False, False, True])
    wait_until(lambda: next(answers), "the third answer")
    assert list(answers) == []
    with pytest.raises(TimeoutError, match=r"waited 0\.1 s for nothing at all"):
        wait_until(lambda: False, "nothing at all", deadline_seconds=0.1)


def test_arms_are_measured_in_turn() -> None:
    order: list[str] = []

    def arm(name: str) -> dict[str, float]:
        order.append(name)
        return {"turn": len(order)}

    measured = interleave({"with": lambda: arm("with"), "without": lambda: arm("without")}, 3)
    assert order == ["with", "without"] * 3
    assert [value["turn"] for value in measured["with"]] == [1, 3, 5]
    assert [value["turn"] for value in measured["without"]] == [2, 4, 6]


def test_median_and_spread() -> None:
    spread = median_and_spread([3.0, 1.0, 2.0, 10.0])
    assert spread == (2.5, 1.0, 10.0)
    assert str(spread) == "2.5 (1 to 10)"
