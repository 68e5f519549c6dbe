"""Starts real patterns without Docker: small HTTP servers, Redis, PostgreSQL and Envoy."""

import errno
import getpass
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from textwrap import shorten
from time import monotonic, sleep
from typing import Any

import httpx
import psutil
import psycopg2
import pytest
import redis
import yaml
from rich.text import Text

from tools.read.compose import load
from tools.read.patterns import canonical
from tools.run import __main__ as command
from tools.run import ports, processes, ready, verbs
from tools.run.ports import free_port
from tools.run.processes import all_of
from tools.run.progress import last_line
from tools.run.rewrite import state_dir, tmpfs_paths
from tools.run.state import LocalError, only_one, socket_path
from tools.run.supervisor import missing_services, states
from tools.run.verbs import processes_of

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60

# Responds with its environment and pid; its arguments select further behaviour.
SERVER = """
import http.server, json, os, signal, subprocess, sys, time
port, *words = sys.argv[1:]
if "deaf" in words:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" in words:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
if "polite" in words:
    def leave(*_):
        print("leaving politely")
        sys.exit(0)
    signal.signal(signal.SIGINT, leave)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/crash":
            print("the last words")
            os._exit(3)
        if self.path == "/hang":
            time.sleep(600)
        body = json.dumps({"pid": os.getpid(), "environment": dict(os.environ)}).encode()
        late = "late" in words and not os.path.exists("go")
        self.send_response(503 if "ill" in words or late else 200)
        self.end_headers()
        self.wfile.write(body)
print("listening on", port)
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""
# Removes its file when it ends, as the worker of asynchronous_pattern does.
TOUCHING = """
import os, pathlib, signal, sys
alive = pathlib.Path(os.environ["ALIVE"])
alive.touch()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(alive.unlink()))
signal.pause()
"""
WORKER = {"build": ".", "command": ["sleep", "600"]}
PROBE = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"


@pytest.fixture
def pattern(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "a pattern; with # spaces & 'quotes' %s $HOME ü"
    directory.mkdir()
    (directory / "server.py").write_text(SERVER, encoding="utf-8")
    yield directory
    run_local("down", directory, "--volumes")
    assert all_of(state_dir(directory)) == []


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def run_local(verb: str, *words: Path | str) -> Result:
    """Runs a command of the runner in this process, which is faster than starting one."""
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        try:
            returncode = command.main([verb, *map(str, words)])
        except SystemExit as leaving:
            returncode = int(leaving.code or 0)
    return Result(returncode, output.getvalue(), errors.getvalue())


def up(pattern: Path, services: dict[str, Any], **top: Any) -> str:
    write(pattern, services, **top)
    result = run_local("up", pattern)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def write(pattern: Path, services: dict[str, Any], **top: Any) -> None:
    text = yaml.safe_dump({"services": services, **top}, sort_keys=False)
    (pattern / "docker-compose.yml").write_text(text, encoding="utf-8")


def server(port: int, *words: str, name: str = "api", **keys: Any) -> dict[str, Any]:
    return {
        "build": ".",
        "command": ["python", "server.py", str(port), *words],
        "ports": [f"127.0.0.1:{port}:{port}"],
        "healthcheck": {"test": ["CMD", "python", "-c", PROBE, f"http://{name}:{port}/"]},
        **keys,
    }


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    except httpx.TransportError:
        return False


def pid_of(port: int) -> int:
    pid: int = httpx.get(f"http://127.0.0.1:{port}/").json()["pid"]
    return pid


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = monotonic() + DEADLINE_SECONDS
    while not condition():
        assert monotonic() < deadline, f"never happened: {what}"
        sleep(0.02)


def crash(port: int) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/crash")


# --- up and down ----------------------------------------------------------------------------------


def test_up_waits_for_every_service_and_down_leaves_no_process(pattern: Path) -> None:
    port = free_port()
    output = up(pattern, {"api": server(port)})
    assert "api ready in" in output
    assert "make logs" in output
    assert answers(port)
    assert len(all_of(state_dir(pattern))) == 2
    assert run_local("down", pattern).returncode == 0
    assert not answers(port)
    assert all_of(state_dir(pattern)) == []


def test_a_second_up_or_down_changes_nothing(pattern: Path) -> None:
    port = free_port()
    services = {"api": server(port)}
    up(pattern, services)
    pid = pid_of(port)
    assert "is already up" in up(pattern, services)
    assert pid_of(port) == pid
    assert run_local("down", pattern).returncode == 0
    second = run_local("down", pattern)
    assert second.returncode == 0
    assert "is not up" in second.stdout


def test_up_restarts_everything_after_the_file_has_changed(pattern: Path) -> None:
    port = free_port()
    up(pattern, {"api": server(port, environment={"LEVEL": "1"})})
    assert "has changed" in up(pattern, {"api": server(port, environment={"LEVEL": "2"})})
    assert httpx.get(f"http://127.0.0.1:{port}/").json()["environment"]["LEVEL"] == "2"


def test_a_second_up_from_another_shell_changes_nothing(
    pattern: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    services = {"api": server(port)}
    up(pattern, services)
    pid = pid_of(port)
    for folder in ("programs", "home", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LANG", "de_CH.UTF-8")
    # As in another shell, which has no cache of the path.
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    output = up(pattern, services)
    assert ("is already up" in output, "has changed" in output) == (True, False)
    text = (pattern / "docker-compose.yml").read_text(encoding="utf-8")
    (pattern / "docker-compose.yml").write_text(f"# A comment.\n{text}", encoding="utf-8")
    assert "is already up" in run_local("up", pattern).stdout
    assert pid_of(port) == pid


def test_a_service_gets_only_its_own_variables(
    pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("STRAY_VARIABLE", "1")
    own = {"QUOTED": "a 'b' \"c\" # %d; $$HOME\n", "PEER_HOST": "api", "PEER": f"http://api:{port}"}
    up(pattern, {"api": server(port, environment=own)})
    found = httpx.get(f"http://127.0.0.1:{port}/").json()["environment"]
    assert found["QUOTED"] == "a 'b' \"c\" # %d; $HOME\n"
    assert found["PEER_HOST"] == "127.0.0.1"
    assert found["PEER"] == f"http://127.0.0.1:{port}"
    assert found["PYTHONUNBUFFERED"] == "1"
    allowed = {*own, "PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "PYTHONUNBUFFERED"}
    # Python itself sets LC_CTYPE where no locale is set.
    assert set(found) <= allowed | {"LOCAL_RUNNER", "LC_CTYPE"}


def test_a_service_starts_after_its_dependencies(pattern: Path) -> None:
    ports = [free_port() for _ in range(3)]
    started = "import pathlib, time; pathlib.Path('done').write_text('x'); print('migrated')"
    output = up(
        pattern,
        {
            "web": server(
                ports[0],
                name="web",
                depends_on={
                    "api": {"condition": "service_healthy"},
                    "migrate": {"condition": "service_completed_successfully"},
                },
            ),
            "api": server(ports[1]),
            "migrate": {"build": ".", "command": ["python", "-c", started]},
            "side": server(ports[2], name="side", depends_on=["api"]),
        },
    )
    order = [line.split()[0] for line in output.splitlines() if " ready in " in line]
    assert order.index("web") > max(order.index("api"), order.index("migrate"))
    spawned = (state_dir(pattern) / "supervisord.log").read_text(encoding="utf-8")
    assert spawned.index("'api'") < spawned.index("'web'")
    # The successful end of a one-shot does not take the pattern down.
    assert all(answers(port) for port in ports)
    assert "migrated" in run_local("logs", pattern, "migrate").stdout


def test_all_replicas_run(pattern: Path) -> None:
    command = ["python", "-c", "import time; print('working'); time.sleep(600)"]
    up(pattern, {"worker": {"build": ".", "command": command, "deploy": {"replicas": 3}}})
    pids = set((state_dir(pattern) / "pids").glob("worker-*"))
    assert {path.name for path in pids} == {"worker-1", "worker-2", "worker-3"}


# --- ports ----------------------------------------------------------------------------------------

# Asks Redis through the address that it was told.
ASKING = """
import http.server, os, redis, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(redis.Redis.from_url(os.environ["REDIS_URL"]).get("name") or b"nobody")
http.server.HTTPServer((sys.argv[1], int(sys.argv[3])), Handler).serve_forever()
"""


def asking_services(port: int, redis_port: int) -> dict[str, Any]:
    return {
        "api": {
            "build": ".",
            "command": ["python", "asking.py", "0.0.0.0", "--port", str(port)],
            "environment": {"REDIS_URL": f"redis://redis:{redis_port}/0"},
            "ports": [f"127.0.0.1:${{PORT:-{port}}}:{port}"],
            "healthcheck": {"test": ["CMD", "python", "-c", PROBE, f"http://127.0.0.1:{port}/"]},
            "depends_on": {"redis": {"condition": "service_healthy"}},
        },
        "redis": {
            "image": "redis:8.0",
            "command": ["redis-server", "--port", str(redis_port)],
            "expose": [str(redis_port)],
            "healthcheck": {"test": ["CMD", "redis-cli", "-p", str(redis_port), "ping"]},
        },
    }


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "second pattern"
    directory.mkdir()
    yield directory
    run_local("down", directory, "--volumes")
    assert all_of(state_dir(directory)) == []


def test_two_patterns_run_side_by_side_and_no_verb_needs_the_port_again(
    pattern: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, redis_port, other_port = free_port(), free_port(), free_port()
    services = asking_services(port, redis_port)
    for directory in (pattern, second):
        (directory / "asking.py").write_text(ASKING, encoding="utf-8")
    up(pattern, services)
    monkeypatch.setenv("PORT", str(other_port))
    up(second, services)
    assert "is already up" in up(second, services)
    monkeypatch.delenv("PORT")

    def names() -> list[str]:
        return [httpx.get(f"http://127.0.0.1:{number}/").text for number in (port, other_port)]

    with redis.Redis(port=redis_port) as client:
        client.set("name", "first")
    assert names() == ["first", "nobody"]
    for verb in ("kill", "start", "stop", "start", "restart"):
        assert run_local(verb, second, "api").returncode == 0
    assert run_local("restart", second, "redis").returncode == 0
    assert names() == ["first", "nobody"]
    assert f"127.0.0.1:{other_port}\n" in run_local("ps", second).stdout
    # As with Compose, the next `up` is told the port again.
    monkeypatch.setenv("PORT", str(free_port()))
    assert "has changed" in up(second, services)
    assert run_local("down", second).returncode == 0
    assert httpx.get(f"http://127.0.0.1:{port}/").text == "first"


def test_up_names_the_pattern_that_has_the_port_and_leaves_both_as_they_were(
    pattern: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, other_port = free_port(), free_port()
    up(pattern, {"api": server(port)})
    (second / "server.py").write_text(SERVER, encoding="utf-8")
    services = {"api": server(port) | {"ports": [f"127.0.0.1:${{API_PORT:-{port}}}:{port}"]}}
    services["api"]["command"] = ["sh", "-c", 'python server.py "$$UVICORN_PORT"']
    services["api"]["environment"] = {"UVICORN_PORT": str(port)}
    write(second, services)
    refused = run_local("up", second)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"error: port {port} on 127.0.0.1 is in use because {pattern.name} is up "
        f"(pid {pid_of(port)}, {shown(pid_of(port))}): "
        f"stop it with `make -C {shlex.quote(str(pattern))} down`, "
        f"or use another port: API_PORT={suggested(refused.stderr)} make up\n"
    )
    monkeypatch.setenv("API_PORT", str(other_port))
    up(second, services)
    monkeypatch.delenv("API_PORT")
    assert run_local("up", second).returncode == 1
    assert answers(port)
    assert answers(other_port)


def shown(pid: int) -> str:
    return shorten(" ".join(psutil.Process(pid).cmdline()), ports.COMMAND_MAX)


def suggested(message: str) -> int:
    """Returns the port that a message suggests, which must be free."""
    found = re.search(r"_PORT=(\d+) make up", message)
    assert found
    port = int(found[1])
    assert not ports.is_taken(port)
    return port


def test_up_names_the_pattern_whose_redis_has_the_port(
    pattern: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    up(pattern, {"redis": redis_service(port)}, volumes={"redis-data": None})
    # Redis has overwritten its mark, so what counts is the record of the patterns.
    monkeypatch.setattr(ports, "patterns", lambda: [pattern])
    write(second, {"api": server(port)})
    assert f"because {pattern.name} is up (pid " in run_local("up", second).stderr


@pytest.mark.parametrize(
    ("directory", "expected"),
    [
        (".", "because {} is up (with Docker, container a-1): stop it with `make -C "),
        # A Compose project of somebody else.
        ("bin", "by the container a-1: stop it with `docker stop a-1`"),
    ],
)
def test_up_names_the_container_that_has_the_port(
    pattern: Path, monkeypatch: pytest.MonkeyPatch, directory: str, expected: str
) -> None:
    folder = pattern / "bin"
    folder.mkdir()
    (pattern / "Makefile").touch()
    place = shlex.quote(str(pattern / directory))
    (folder / "docker").write_text(
        f'#!/bin/sh\n[ "$1 $2 $3" = "ps --filter publish=$PORT" ] && printf "a-1\\t%s\\n" {place}\n'
    )
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        write(pattern, {"api": server(port)})
        result = run_local("up", pattern)
    assert f"port {port} on 127.0.0.1 is in use {expected.format(pattern.name)}" in result.stderr


def test_a_port_is_taken_if_somebody_listens_on_every_address() -> None:
    with socket.socket() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert ports.is_taken(port)
    assert not ports.is_taken(port)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine may have no IPv6")
def test_a_port_is_taken_if_localhost_leads_to_somebody_with_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as holder:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind(("::1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert ports.is_taken(port)
    assert not ports.is_taken(port)


def test_a_port_that_this_user_may_not_use_is_an_error_or_moves(
    pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(port: int) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    write(pattern, {"api": server(80), "other": {**WORKER, "expose": ["81"]}})
    compose = load(pattern)
    monkeypatch.setattr(ports, "is_taken", refuse)
    chosen = ports.choose(compose, own=set(), immovable=set())
    assert chosen[80] == 80
    assert chosen[81] > 1024
    with pytest.raises(ports.PortError, match="port 80 cannot be used: Permission denied"):
        ports.refuse_taken(pattern, [80])


def test_with_docker_a_taken_port_is_named_before_anything_is_installed(pattern: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        write(pattern, {"api": server(port)})
        # Without the packages of the environment, and without Docker.
        command = [sys.executable, "-S", "-m", "tools.run.ports", str(pattern)]
        environment = os.environ | {"PATH": "/none"}
        asked = partial(subprocess.run, command, cwd=ROOT, env=environment, capture_output=True)
        refused = asked(text=True)
        # A server that is not asked for needs no port.
        write(pattern, {"api": server(free_port()), "traces": server(port, profiles=["traces"])})
        assert asked().returncode == 0
        assert asked(env=environment | {"COMPOSE_PROFILES": "traces"}).returncode == 1
        write(pattern, {"api": server(port)})
    message = f"error: port {port} on 127.0.0.1 is in use by another program: stop it\n"
    assert (refused.returncode, refused.stderr) == (1, message)
    assert asked(text=True).returncode == 0


def test_a_port_without_a_variable_is_refused_if_it_cannot_move(pattern: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        worker = {**WORKER, "environment": {"REDIS_HOST": "redis"}}
        write(
            pattern,
            {"worker": worker, "redis": redis_service(port)},
            volumes={"redis-data": None},
        )
        result = run_local("up", pattern)
    assert f"port {port} on 127.0.0.1 is in use by another program" in result.stderr
    assert result.stderr.endswith(": stop it\n")


# --- one service ----------------------------------------------------------------------------------


def test_stop_start_and_kill_affect_only_one_service(pattern: Path) -> None:
    api, other = free_port(), free_port()
    services = {
        "api": server(api, "child", restart="always"),
        "other": server(other, name="other"),
    }
    up(pattern, services)
    pid = pid_of(other)
    for verb, done in (("stop", "api stopped in"), ("kill", "api killed")):
        result = run_local(verb, pattern, "api")
        assert done in result.stdout, result.stderr
        assert not answers(api)
        # Its child in a separate session is gone too: only the supervisor and the other are left.
        wait_for(lambda: len(all_of(state_dir(pattern))) == 2, "the child of api ends")
        assert run_local(verb, pattern, "api").returncode == 0
        assert "api ready in" in run_local("start", pattern, "api").stdout
        assert answers(api)
    assert "already up" in run_local("start", pattern, "api").stdout
    assert pid_of(other) == pid


def test_stop_sends_the_stop_signal_of_the_service(pattern: Path) -> None:
    port = free_port()
    up(pattern, {"api": server(port, "polite", stop_signal="SIGINT")})
    assert run_local("stop", pattern, "api").returncode == 0
    assert "leaving politely" in run_local("logs", pattern).stdout


def test_a_service_that_ignores_its_stop_signal_is_killed_after_its_grace_period(
    pattern: Path,
) -> None:
    port = free_port()
    up(pattern, {"api": server(port, "deaf", stop_grace_period="1s")})
    begin = monotonic()
    assert run_local("down", pattern).returncode == 0
    assert monotonic() - begin >= 1
    assert not answers(port)


def test_restart_replaces_the_process_of_one_service_and_waits_until_it_is_ready(
    pattern: Path,
) -> None:
    api, other = free_port(), free_port()
    up(pattern, {"api": server(api), "other": server(other, name="other")})
    pids = pid_of(api), pid_of(other)
    result = run_local("restart", pattern, "api")
    assert result.returncode == 0, result.stderr
    assert [line.rpartition(" in ")[0] for line in result.stdout.splitlines()] == [
        "api stopped",
        "api ready",
    ]
    assert pid_of(api) != pids[0]
    assert pid_of(other) == pids[1]


def test_ps_lists_what_runs_and_what_has_ended(pattern: Path) -> None:
    port = free_port()
    after = {"job": {"condition": "service_completed_successfully"}}
    write(pattern, {"job": {"build": ".", "command": ["true"]}, "worker": WORKER})
    assert run_local("ps", pattern).stdout.endswith(" is not up\n")
    up(
        pattern,
        {
            "api": server(port, depends_on=after),
            "job": {"build": ".", "command": ["true"]},
            "worker": {**WORKER, "deploy": {"replicas": 2}},
            "stopped": WORKER,
        },
    )
    assert run_local("stop", pattern, "stopped").returncode == 0
    header, *lines = run_local("ps", pattern).stdout.splitlines()
    assert header.split("  ")[0] == "PROCESS"
    rows = {cells[0]: cells[1:] for cells in (re.split(r" {2,}", line) for line in lines)}
    assert set(rows) == {"api", "job", "worker-1", "worker-2", "stopped"}
    state, since, pid, address = rows["api"]
    assert (state, pid, address) == ("running", str(pid_of(port)), f"127.0.0.1:{port}")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", since)
    assert {name: cells[0] for name, cells in rows.items() if name != "api"} == {
        "job": "done",
        "worker-1": "running",
        "worker-2": "running",
        "stopped": "stopped",
    }
    assert rows["stopped"][2] == "-"
    assert psutil.Process(int(rows["worker-2"][2])).cmdline() == ["sleep", "600"]


def test_an_unknown_service_is_an_error_that_lists_the_services(pattern: Path) -> None:
    up(pattern, {"worker": WORKER})
    for verb in ("stop", "start", "restart", "kill", "pause", "unpause", "logs"):
        result = run_local(verb, pattern, "wroker")
        assert result.returncode == 1
        assert 'there is no service "wroker"; services: worker' in result.stderr


def test_a_verb_for_one_service_needs_a_pattern_that_is_up(pattern: Path) -> None:
    write(pattern, {"worker": WORKER})
    for verb in ("stop", "start", "kill", "pause", "unpause"):
        result = run_local(verb, pattern, "worker")
        assert (result.returncode, "is not up" in result.stderr) == (1, True)


def test_a_name_in_the_other_unicode_form_is_the_same_pattern(pattern: Path) -> None:
    # As on macOS: the system gives the name in NFD, and finds it in NFC too.
    composed, decomposed = pattern / "caf\u00e9", pattern / "cafe\u0301"
    decomposed.mkdir()
    assert canonical(decomposed) == decomposed
    composed.symlink_to(decomposed)
    assert canonical(decomposed) == canonical(composed) == composed
    (decomposed / "server.py").symlink_to(pattern / "server.py")
    services = {"api": server(free_port(), "child"), "worker": WORKER}
    up(decomposed, services)
    assert "is already up" in up(composed, services)
    assert run_local("stop", composed, "api").returncode == 0
    # The child of the API is gone too: the supervisor and the worker are left.
    assert len(all_of(state_dir(decomposed))) == 2
    assert run_local("down", composed).returncode == 0
    assert all_of(state_dir(decomposed)) == []


# --- paused services ------------------------------------------------------------------------------


def is_hung(port: int) -> bool:
    """Tells whether a server accepts a connection and does not answer."""
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=httpx.Timeout(5, read=0.2))
    except httpx.ReadTimeout:
        return True
    return False


def test_a_paused_service_hangs_with_its_children_until_it_goes_on(pattern: Path) -> None:
    api, other = free_port(), free_port()
    up(pattern, {"api": server(api, "child"), "other": server(other, name="other")})
    pid = pid_of(api)
    assert run_local("pause", pattern, "api").stdout == "api paused\n"
    family = [psutil.Process(pid), *psutil.Process(pid).children()]
    # The child has its own session.
    assert [process.status() for process in family] == [psutil.STATUS_STOPPED] * 2
    assert is_hung(api)
    assert answers(other)
    assert re.search(r"^api +paused .*$", run_local("ps", pattern).stdout, re.MULTILINE)
    again = run_local("pause", pattern, "api")
    assert (again.returncode, again.stderr.startswith("error: api is already paused")) == (1, True)
    assert run_local("unpause", pattern, "api").stdout == "api goes on\n"
    assert pid_of(api) == pid
    assert psutil.STATUS_STOPPED not in [process.status() for process in family]
    again = run_local("unpause", pattern, "api")
    assert (again.returncode, again.stderr) == (1, "error: api is not paused\n")


@pytest.mark.parametrize(
    ("verb", "is_polite", "runs_again"),
    [
        ("start", True, True),
        ("up", True, True),
        ("restart", True, True),
        ("stop", True, False),
        ("kill", False, False),
        ("down", True, False),
    ],
)
def test_every_verb_works_on_a_paused_service(
    pattern: Path, verb: str, is_polite: bool, runs_again: bool
) -> None:
    port = free_port()
    up(pattern, {"api": server(port, "polite", stop_signal="SIGINT")})
    pid = pid_of(port)
    run_local("pause", pattern, "api")
    result = run_local(verb, pattern, *(["api"] if verb not in ("up", "down") else []))
    assert result.returncode == 0, result.stderr
    log = (state_dir(pattern) / "log" / "api.log").read_text(encoding="utf-8")
    assert ("leaving politely" in log) is is_polite
    assert not psutil.pid_exists(pid)
    assert answers(port) is runs_again


def test_a_service_that_has_stopped_can_be_neither_paused_nor_unpaused(pattern: Path) -> None:
    up(pattern, {"worker": WORKER, "stopped": WORKER})
    run_local("stop", pattern, "stopped")
    for verb in ("pause", "unpause"):
        result = run_local(verb, pattern, "stopped")
        assert (result.returncode, result.stdout) == (0, "stopped is not running\n")


def test_postgres_is_paused_with_its_backends(pattern: Path) -> None:
    port = free_port()
    environment = {"POSTGRES_USER": "reader", "POSTGRES_PASSWORD": "word", "POSTGRES_DB": "book"}
    up(
        pattern,
        {
            "postgres": {
                "image": "postgres:17",
                "command": ["postgres", "-p", str(port)],
                "expose": [str(port)],
                "environment": environment,
                "healthcheck": {"test": ["CMD", "pg_isready", "-U", "reader", "-d", "book"]},
            }
        },
    )
    account = f"host=127.0.0.1 port={port} user=reader dbname=book password=word"
    with closing(psycopg2.connect(account)) as connection:
        assert run_local("pause", pattern, "postgres").returncode == 0
        assert {process.status() for process in processes_of(load(pattern), "postgres")} == {
            psutil.STATUS_STOPPED
        }
        assert run_local("unpause", pattern, "postgres").returncode == 0
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == (1,)


# --- jobs on demand -------------------------------------------------------------------------------

# Shows how it was started, and waits until it is told to end or to start another process.
ON_DEMAND = """
import json, os, pathlib, signal, subprocess, sys, time
told = {"environment": dict(os.environ), "terminal": sys.stdout.isatty(), "cwd": os.getcwd()}
print(json.dumps(told), flush=True)
words = sys.argv[1:]
if "deaf" in words:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" in words:
    subprocess.Popen(["sleep", "600"], start_new_session=True)
pathlib.Path(f"begun-{os.getpid()}").touch()
try:
    while not pathlib.Path("go").exists():
        time.sleep(0.02)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    time.sleep(0.2)
    sys.exit(7)
sys.exit(int(os.environ.get("CODE", "0")))
"""


def job(*words: str, **keys: Any) -> dict[str, Any]:
    command = ["python", "job.py", *words]
    return {"build": ".", "command": command, "profiles": ["job"], **keys}


def up_with_job(pattern: Path, *words: str, **keys: Any) -> None:
    (pattern / "job.py").write_text(ON_DEMAND, encoding="utf-8")
    up(pattern, {"worker": WORKER, "job": job(*words, **keys)})


def run_in_background(pattern: Path, **options: Any) -> subprocess.Popen[str]:
    """Starts a run of the job and waits until it has begun."""
    before = len(list(pattern.glob("begun-*")))
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.run", "run", str(pattern), "job"],
        cwd=ROOT,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options},
    )
    wait_for(lambda: len(list(pattern.glob("begun-*"))) > before, "the job begins")
    return process


def runs_of(pattern: Path) -> list[psutil.Process]:
    return all_of(state_dir(pattern), lambda name: name.startswith("job.run-"))


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_runs_on_demand_with_its_own_environment_and_returns_its_exit_code(
    pattern: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    environment = {"LEVEL": "${LEVEL:-low}", "CODE": str(code), "PEER": "http://worker:81"}
    up_with_job(pattern, environment=environment)
    assert runs_of(pattern) == []
    (pattern / "go").touch()
    monkeypatch.setenv("LEVEL", "high")
    monkeypatch.setenv("STRAY_VARIABLE", "1")
    with run_in_background(pattern) as process:
        told = json.loads(process.communicate(timeout=DEADLINE_SECONDS)[0])
    assert process.returncode == code
    assert told["environment"]["LEVEL"] == "high"
    assert told["environment"]["PEER"] == "http://127.0.0.1:81"
    assert "STRAY_VARIABLE" not in told["environment"]
    assert told["cwd"] == str(pattern)
    assert list((state_dir(pattern) / "pids").glob("job*")) == []
    # Its end, whatever its code, and the variable of its run leave the services alone.
    assert run_local("ps", pattern).stdout.count("running") == 1
    monkeypatch.delenv("LEVEL")
    assert "is already up" in run_local("up", pattern).stdout


def test_a_job_writes_to_the_terminal(pattern: Path) -> None:
    up_with_job(pattern)
    (pattern / "go").touch()
    reading, writing = pty.openpty()
    with run_in_background(pattern, stdout=writing, stderr=writing):
        os.close(writing)
        assert b'"terminal": true' in os.read(reading, 10_000)
    os.close(reading)


def test_several_runs_of_a_job_are_listed_and_killed_together(pattern: Path) -> None:
    up_with_job(pattern, "child")
    with run_in_background(pattern) as first, run_in_background(pattern) as second:
        listed = run_local("ps", pattern).stdout
        assert len(re.findall(r"^job\.run-\d+ +running", listed, re.MULTILINE)) == 2
        # Each has a child in a session of its own.
        assert len(runs_of(pattern)) == 4
        assert run_local("kill", pattern, "job").stdout == "job killed\n"
        assert [each.wait(DEADLINE_SECONDS) for each in (first, second)] == [137, 137]
    assert runs_of(pattern) == []
    assert run_local("kill", pattern, "job").returncode == 0
    assert run_local("ps", pattern).stdout.count("running") == 1


def test_a_job_ends_with_what_it_has_started(pattern: Path) -> None:
    up_with_job(pattern, "child")
    with run_in_background(pattern):
        (pattern / "go").touch()
    assert runs_of(pattern) == []


@pytest.mark.parametrize("words", [(), ("deaf",)])
def test_down_stops_the_runs_of_a_job(pattern: Path, words: tuple[str, ...]) -> None:
    up_with_job(pattern, *words, stop_signal="SIGINT", stop_grace_period="1s")
    with run_in_background(pattern) as first, run_in_background(pattern) as second:
        assert "is down" in run_local("down", pattern).stdout
        assert all_of(state_dir(pattern)) == []
        codes = {first.wait(DEADLINE_SECONDS), second.wait(DEADLINE_SECONDS)}
    assert codes == ({137} if words else {7})


@pytest.mark.parametrize("to_group", [True, False], ids=["Ctrl-C", "a signal to the runner"])
def test_a_signal_reaches_a_job_once(pattern: Path, to_group: bool) -> None:
    up_with_job(pattern)
    with run_in_background(pattern, start_new_session=True) as process:
        (os.killpg if to_group else os.kill)(process.pid, signal.SIGINT)
        output = process.communicate(timeout=DEADLINE_SECONDS)[0]
    # A second one would have interrupted what the job does after the first.
    assert (process.returncode, output.count("interrupted")) == (7, 1)
    assert "Traceback" not in output


def test_a_job_that_ignores_a_signal_is_killed_after_its_grace_period(pattern: Path) -> None:
    up_with_job(pattern, "deaf", stop_grace_period="0.5s")
    with run_in_background(pattern) as process:
        process.terminate()
        assert process.wait(DEADLINE_SECONDS) == 137
    assert runs_of(pattern) == []


@pytest.mark.parametrize("words", [("kill", "job"), ("down",)])
def test_a_job_whose_runner_was_killed_can_be_ended(pattern: Path, words: tuple[str, ...]) -> None:
    up_with_job(pattern)
    with run_in_background(pattern) as process:
        process.kill()
    assert len(runs_of(pattern)) == 1
    verb, *service = words
    assert run_local(verb, pattern, *service).returncode == 0
    assert runs_of(pattern) == []


def test_a_job_can_only_run_while_the_pattern_is_up(pattern: Path) -> None:
    write(pattern, {"worker": WORKER, "job": job()})
    for _ in range(2):
        refused = run_local("run", pattern, "job")
        assert refused.returncode == 1
        assert refused.stderr == f"error: {pattern.name} is not up: run `make up` first\n"
        assert run_local("up", pattern).returncode == 0
        with only_one(load(pattern)):
            assert "another command" in run_local("run", pattern, "job").stderr
        run_local("down", pattern)


def test_only_a_job_runs_on_demand_and_only_a_service_can_be_started(pattern: Path) -> None:
    up(pattern, {"worker": WORKER, "job": job(), "lost": job() | {"command": ["no-such-program"]}})
    for service, reason in {
        "worker": "make up starts worker; services that run on demand: job, lost",
        "jbo": 'there is no service "jbo"; services: worker, job',
        "lost": 'service "lost": no-such-program is not installed',
    }.items():
        refused = run_local("run", pattern, service)
        assert refused.returncode == 1
        assert reason in refused.stderr
    for verb in ("start", "stop", "restart", "pause", "unpause"):
        refused = run_local(verb, pattern, "job")
        assert refused.returncode == 1
        assert "job runs on demand: make run SERVICE=job starts it" in refused.stderr
    assert run_local("logs", pattern, "job").stdout == ""


# --- servers with a profile -----------------------------------------------------------------------


def test_a_server_with_a_profile_starts_only_with_it_and_no_other_verb_names_it_again(
    pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, opt_in = free_port(), free_port()
    environment = {"TRACES": f"${{COMPOSE_PROFILES:+http://traces:{opt_in}}}"}
    services = {
        "api": server(port, environment=environment),
        "traces": server(opt_in, name="traces", profiles=["traces"]),
    }
    with socket.create_server(("127.0.0.1", opt_in)):
        # Its port may be taken.
        up(pattern, services)
    told = httpx.get(f"http://127.0.0.1:{port}/").json()["environment"]
    assert (told["TRACES"], answers(opt_in)) == ("", False)
    refused = run_local("start", pattern, "traces")
    assert refused.returncode == 1
    assert refused.stderr == "error: traces is not up: make up PROFILE=traces starts it\n"
    monkeypatch.setenv("COMPOSE_PROFILES", "traces")
    assert run_local("up", pattern).returncode == 0
    monkeypatch.delenv("COMPOSE_PROFILES")
    told = httpx.get(f"http://127.0.0.1:{port}/").json()["environment"]
    assert told["TRACES"] == f"http://127.0.0.1:{opt_in}"
    assert answers(opt_in)
    for verb in ("pause", "unpause", "kill", "start", "stop"):
        done = run_local(verb, pattern, "traces")
        assert done.returncode == 0, done.stderr
    assert run_local("up", pattern).returncode == 0
    assert (answers(port), answers(opt_in)) == (True, False)


def test_a_built_service_runs_in_the_directory_of_its_build(pattern: Path) -> None:
    (pattern / "services/iris").mkdir(parents=True)
    (pattern / "server.py").rename(pattern / "services/iris/server.py")
    port = free_port()
    up(pattern, {"iris": server(port, name="iris", build="services/iris")})
    assert answers(port)


# --- deaths ---------------------------------------------------------------------------------------


def test_a_service_with_a_restart_policy_restarts_and_the_others_keep_running(
    pattern: Path,
) -> None:
    ports = {name: free_port() for name in ("on-failure", "unless-stopped", "always", "other")}
    services = {name: server(port, name=name, restart=name) for name, port in ports.items()}
    up(pattern, services | {"other": server(ports["other"], name="other")})
    pids = {name: pid_of(port) for name, port in ports.items()}
    other = ports.pop("other")
    for name, port in ports.items():
        os.kill(pids[name], signal.SIGKILL)
        wait_for(partial(answers, port), f"{name} comes back after SIGKILL")
        assert pid_of(port) != pids[name]
        crash(port)
    for name, port in ports.items():
        wait_for(partial(answers, port), f"{name} comes back after a crash")
    assert pid_of(other) == pids["other"]


def test_on_failure_does_not_restart_a_service_that_succeeded(pattern: Path) -> None:
    job = ["python", "-c", "print('once')"]
    worker = {
        "build": ".",
        "command": ["sleep", "600"],
        "depends_on": {"job": {"condition": "service_completed_successfully"}},
    }
    up(pattern, {"job": {"build": ".", "command": job, "restart": "on-failure"}, "worker": worker})
    assert run_local("logs", pattern, "job").stdout.count("once") == 1
    assert states(load(pattern))["job"] == {"DONE"}


def test_a_dying_service_stops_the_others_and_the_next_command_shows_its_log(
    pattern: Path,
) -> None:
    api, other = free_port(), free_port()
    up(pattern, {"api": server(api), "other": server(other, name="other")})
    crash(api)
    wait_for(lambda: all_of(state_dir(pattern)) == [], "the others are stopped")
    result = run_local("stop", pattern, "other")
    assert result.returncode == 1
    assert 'service "api" ended with status 3' in result.stderr
    assert "the last words" in result.stderr
    # It is reported only once.
    assert "the last words" not in run_local("down", pattern).stderr


def test_a_service_that_dies_during_up_is_reported_and_everything_stops(pattern: Path) -> None:
    port = free_port()
    write(
        pattern,
        {
            "api": server(port),
            "bad": {
                "build": ".",
                "command": ["python", "-c", "raise SystemExit('no model here')"],
                "depends_on": {"api": {"condition": "service_healthy"}},
                "healthcheck": {"test": ["CMD", "false"]},
            },
        },
    )
    result = run_local("up", pattern)
    assert result.returncode == 1
    assert 'service "bad" ended with status 1' in result.stderr
    assert "no model here" in result.stderr
    assert not answers(port)
    assert all_of(state_dir(pattern)) == []


def test_a_missing_program_is_named(pattern: Path) -> None:
    service = {
        "build": ".",
        "command": ["no-such-program"],
        "healthcheck": {"test": ["CMD", "false"]},
    }
    write(pattern, {"api": service})
    result = run_local("up", pattern)
    assert (result.returncode, "no-such-program" in result.stderr) == (1, True)


def test_up_fails_with_the_output_of_a_failing_health_check(
    pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    write(
        pattern,
        {
            "api": server(
                port,
                "ill",
                healthcheck=server(port)["healthcheck"]
                | {
                    "interval": "1s",
                    "retries": 1,
                },
            )
        },
    )
    # Long enough for one health check.
    monkeypatch.setattr(ready, "READY_DEADLINE_SECONDS", 8)
    with pytest.raises(LocalError, match=r"(?s)not ready after 8 s.*Error 503.*lines.*GET"):
        verbs.up(pattern)
    assert all_of(state_dir(pattern)) == []


# --- silent services ------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("up",), ("start", "api")])
def test_a_silent_service_is_restarted_and_the_others_keep_running(
    pattern: Path, words: tuple[str, ...]
) -> None:
    api, other = free_port(), free_port()
    health = server(api)["healthcheck"] | {"timeout": "1s", "retries": 1}
    services = {"api": server(api, healthcheck=health), "other": server(other, name="other")}
    up(pattern, services)
    silent, pid = pid_of(api), pid_of(other)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"http://127.0.0.1:{api}/hang", timeout=0.1)
    verb, *service = words
    result = run_local(verb, pattern, *service)
    assert result.returncode == 0, result.stderr
    assert "api runs but does not answer its health check: restarting it" in result.stdout
    assert "api ready in" in result.stdout
    assert "already up" not in result.stdout
    assert pid_of(api) != silent
    assert pid_of(other) == pid
    assert len(all_of(state_dir(pattern))) == 3


@pytest.mark.timeout(120)
def test_up_restarts_everything_if_the_supervisor_is_suspended(pattern: Path) -> None:
    port = free_port()
    services = {"api": server(port)}
    up(pattern, services)
    pid = pid_of(port)
    os.kill(int((state_dir(pattern) / "supervisord.pid").read_text()), signal.SIGSTOP)
    assert "api ready in" in up(pattern, services)
    assert pid_of(port) != pid
    assert len(all_of(state_dir(pattern))) == 2


def test_up_after_a_killed_up_waits_for_what_still_starts(pattern: Path) -> None:
    port = free_port()
    write(pattern, {"api": server(port, "late")})
    command = [sys.executable, "-m", "tools.run", "up", str(pattern)]
    start_up = partial(subprocess.Popen, command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = state_dir(pattern) / "log" / "api.log"

    def checks() -> int:
        return log.read_text().count("GET") if log.exists() else 0

    with start_up() as killed:
        wait_for(checks, "the first health check")
        killed.kill()
    # One health check of the killed command may still arrive.
    before = checks() + 1
    with start_up() as process:
        wait_for(lambda: checks() > before or process.poll() is not None, "a health check")
        assert process.poll() is None
        (pattern / "go").touch()
        assert "is already up" in process.communicate(timeout=DEADLINE_SECONDS)[0]
    assert answers(port)


def test_up_after_a_killed_up_waits_for_a_job_that_still_runs(pattern: Path) -> None:
    job = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.02)"
    services: dict[str, Any] = {
        "job": {"build": ".", "command": ["python", "-c", job]},
        "worker": {
            **WORKER,
            "depends_on": {"job": {"condition": "service_completed_successfully"}},
        },
    }
    write(pattern, services)
    command = [sys.executable, "-m", "tools.run", "up", str(pattern)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as killed:
        wait_for((state_dir(pattern) / "pids" / "job").exists, "the job starts")
        killed.kill()
    assert missing_services(load(pattern)) == ["job", "worker"]
    (pattern / "go").touch()
    assert "worker ready in" in up(pattern, services)


# --- progress -------------------------------------------------------------------------------------

JOB = """
import pathlib, time
print("loading", "\\x1b[32mepoch 2 of 3\\x1b[0m", "", sep="\\n", flush=True)
while not pathlib.Path("go").exists(): time.sleep(0.02)
"""
# Runs a command of the runner that shows each state, not one every few seconds.
EAGER = """
import sys
from tools.run import __main__, progress
progress.LINE_EVERY_SECONDS = 0
sys.exit(__main__.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("is_terminal", [True, False])
def test_up_shows_what_it_waits_for_and_the_last_log_line(pattern: Path, is_terminal: bool) -> None:
    (pattern / "job.py").write_text(JOB, encoding="utf-8")
    after = {"job": {"condition": "service_completed_successfully"}}
    write(
        pattern,
        {
            "job": {"build": ".", "command": ["python", "job.py"]},
            "worker": {**WORKER, "depends_on": after},
        },
    )
    reading, writing = pty.openpty() if is_terminal else os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", EAGER, "up", str(pattern)],
        cwd=ROOT,
        stdout=writing,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "60"},
    ) as process:
        os.close(writing)
        output = ""
        while not re.search(r"waiting for job \(\d+ s\): epoch 2 of 3", output):
            more = os.read(reading, 10_000).decode(errors="replace")
            assert more, output
            output += more
        # Nothing is shown of the worker, which has not been started.
        assert "worker" not in output
        (pattern / "go").touch()
        # A terminal that has been closed is an error.
        with suppress(OSError):
            while more := os.read(reading, 10_000).decode(errors="replace"):
                output += more
    os.close(reading)
    assert process.returncode == 0
    shown = [line for line in re.split(r"[\r\n]+", output) if "waiting for" in line]
    assert ("\x1b" in shown[0]) is is_terminal
    assert max(len(Text.from_ansi(line)) for line in shown) <= (60 if is_terminal else 80)
    assert output.index("job ready in") < output.index("worker ready in")
    assert output.endswith('stop it with "make down"' + ("\r\n" if is_terminal else "\n"))


def test_the_last_line_of_a_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    assert last_line(log) == ""
    log.write_text("")
    assert last_line(log) == ""
    log.write_text("ä" * 10_000 + "\n10 %\r20 %\r30 %\n  \n")
    assert last_line(log) == "30 %"


# --- failures -------------------------------------------------------------------------------------


def test_up_rejects_a_port_in_use_before_it_starts_anything(
    pattern: Path,
) -> None:
    free = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        write(pattern, {"first": server(free, name="first"), "api": server(port)})
        result = run_local("up", pattern)
    assert result.returncode == 1
    assert f"port {port} on 127.0.0.1 is in use by another program" in result.stderr
    assert f"(pid {os.getpid()}, " in result.stderr
    assert result.stdout == ""
    assert not (state_dir(pattern) / "services").exists()


# Capabilities let root write everywhere; a limit on the size of files works like a full disk.
UNWRITABLE = {
    "Permission denied": ["setpriv", "--bounding-set=-all"] if os.geteuid() == 0 else [],
    "File too large": ["prlimit", "--fsize=64"],
}


@pytest.mark.parametrize("reason", UNWRITABLE)
def test_a_directory_that_cannot_be_written_is_an_error_in_one_line(
    pattern: Path, reason: str
) -> None:
    write(pattern, {"worker": WORKER})
    command = [*UNWRITABLE[reason], sys.executable, "-m", "tools.run", "up", str(pattern)]
    if reason == "Permission denied":
        pattern.chmod(0o500)
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    pattern.chmod(0o700)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert f"{reason}; make {state_dir(pattern)} writable and free space" in failed.stderr
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [".", "log"])
@pytest.mark.parametrize("verb", ["up", "down", "logs"])
def test_files_of_another_user_are_an_error_in_one_line(
    pattern: Path, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    write(pattern, {"worker": WORKER})
    state = state_dir(pattern)
    (state / "log").mkdir(parents=True)
    if os.geteuid() == 0:
        # As after `sudo make up`, or after a container with another user.
        os.chown(state / name, 54321, -1)
    else:
        name = "."
        monkeypatch.setattr(os, "getuid", lambda: 54321)
    owner = "the user with id 54321" if os.geteuid() == 0 else getpass.getuser()
    failed = run_local(verb, pattern)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {state / name} belongs to {owner}: take it ")
    assert failed.stderr.count("\n") == 1
    monkeypatch.undo()
    os.chown(state / name, os.getuid(), -1)


def test_a_full_disk_loses_log_lines_but_stops_neither_services_nor_the_watch(
    pattern: Path,
) -> None:
    api, other = free_port(), free_port()
    up(pattern, {"api": server(api), "other": server(other, name="other")})
    supervisor = psutil.Process(int((state_dir(pattern) / "supervisord.pid").read_text()))
    limit = supervisor.rlimit(psutil.RLIMIT_FSIZE)
    full = (0, limit[1])
    supervisor.rlimit(psutil.RLIMIT_FSIZE, full)
    # When the supervisor has read the second line, it is done with the first.
    for _ in range(2):
        read = supervisor.io_counters().read_chars
        assert answers(api)
        wait_for(lambda: supervisor.io_counters().read_chars > read, "the line is read")  # noqa: B023
    supervisor.rlimit(psutil.RLIMIT_FSIZE, limit)
    httpx.get(f"http://127.0.0.1:{api}/kept")
    wait_for(lambda: "GET /kept" in run_local("logs", pattern).stdout, "a line is logged again")
    supervisor.rlimit(psutil.RLIMIT_FSIZE, full)
    crash(api)
    wait_for(lambda: all_of(state_dir(pattern)) == [], "the other service is stopped")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_leaves_nothing_running(pattern: Path, number: signal.Signals) -> None:
    port = free_port()
    ill = server(
        free_port(), "ill", name="ill", depends_on={"api": {"condition": "service_healthy"}}
    )
    write(pattern, {"api": server(port), "ill": ill})
    with subprocess.Popen(
        [sys.executable, "-m", "tools.run", "up", str(pattern)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert "api ready" in process.stdout.readline()
        process.send_signal(number)
        assert "nothing is left running" in process.communicate(timeout=DEADLINE_SECONDS)[0]
    assert process.returncode == 130
    assert not answers(port)
    assert all_of(state_dir(pattern)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_up_interrupted_twice_leaves_nothing_running(
    pattern: Path, number: signal.Signals
) -> None:
    write(pattern, {"api": server(free_port(), "deaf", "ill", stop_grace_period="3s")})
    log = state_dir(pattern) / "log" / "api.log"
    command = [sys.executable, "-m", "tools.run", "up", str(pattern)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: log.exists() and "listening" in log.read_text(), "the API listens")
        process.send_signal(number)
        stops = state_dir(pattern) / "supervisord.log"
        wait_for(lambda: "SIGTERM indicating exit" in stops.read_text(), "the supervisor stops")
        process.send_signal(number)
        assert "nothing is left running" in process.communicate(timeout=DEADLINE_SECONDS)[1]
    assert all_of(state_dir(pattern)) == []


@pytest.mark.parametrize("delay_seconds", [0.25, 0.4, 0.55])
def test_an_up_interrupted_at_any_moment_leaves_nothing_running(
    pattern: Path, delay_seconds: float
) -> None:
    write(pattern, {"ill": server(free_port(), "ill", name="ill")})
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.run", "up", str(pattern)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # The test is about the moment, so there is nothing to poll for.
    sleep(delay_seconds)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=DEADLINE_SECONDS)
    assert all_of(state_dir(pattern)) == []


def test_down_stops_the_services_after_the_supervisor_was_killed(pattern: Path) -> None:
    port, redis_port = free_port(), free_port()
    services = {"api": server(port, "child"), "redis": redis_service(redis_port)}
    up(pattern, services, volumes={"redis-data": None})
    supervisor = int((state_dir(pattern) / "supervisord.pid").read_text(encoding="utf-8"))
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not psutil.pid_exists(supervisor), "the supervisor is gone")
    assert len(all_of(state_dir(pattern))) == 3
    assert run_local("stop", pattern, "api").returncode == 1
    result = run_local("down", pattern)
    assert (result.returncode, "is down" in result.stdout) == (0, True)
    assert not answers(port)
    assert all_of(state_dir(pattern)) == []
    # Redis has overwritten its environment, including the mark.
    with pytest.raises(ConnectionRefusedError), socket.socket() as client:
        client.connect(("127.0.0.1", redis_port))
    up(pattern, services, volumes={"redis-data": None})


@pytest.mark.parametrize("boot_id", [processes.BOOT_ID, Path("/as/on/macos")])
def test_a_reused_pid_is_left_alone(
    pattern: Path, monkeypatch: pytest.MonkeyPatch, boot_id: Path
) -> None:
    monkeypatch.setattr(processes, "BOOT_ID", boot_id)
    up(pattern, {"worker": WORKER})
    record = state_dir(pattern) / "pids" / "worker"
    pid, start = record.read_text(encoding="utf-8").split("\n", maxsplit=1)
    os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: all_of(state_dir(pattern)) == [], "the pattern is down")
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        record.write_text(f"{stranger.pid}\n{start}", encoding="utf-8")
        os.utime(record, (1, 1))
        (state_dir(pattern) / "supervisord.pid").write_text(str(stranger.pid), encoding="utf-8")
        assert run_local("down", pattern).returncode == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_processes_are_found_after_the_clock_was_set(
    pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, redis_port = free_port(), free_port()
    services = {"api": server(port, "polite", stop_signal="SIGINT")}
    up(pattern, services | {"redis": redis_service(redis_port)}, volumes={"redis-data": None})
    started = psutil.Process.create_time
    # On Linux the start time of a running process moves with the clock.
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: started(self) + 60)
    result = run_local("down", pattern)
    assert (result.returncode, "is down" in result.stdout) == (0, True)
    assert "leaving politely" in (state_dir(pattern) / "log/api.log").read_text(encoding="utf-8")
    with pytest.raises(ConnectionRefusedError), socket.socket() as client:
        client.connect(("127.0.0.1", redis_port))


def test_redis_is_found_after_the_clock_was_set_and_the_supervisor_killed(
    pattern: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis_port = free_port()
    up(pattern, {"redis": redis_service(redis_port)}, volumes={"redis-data": None})
    started = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: started(self) + 60)
    os.kill(int((state_dir(pattern) / "supervisord.pid").read_text()), signal.SIGKILL)
    assert "is down" in run_local("down", pattern).stdout
    with pytest.raises(ConnectionRefusedError), socket.socket() as client:
        client.connect(("127.0.0.1", redis_port))


def test_concurrent_commands_are_rejected(pattern: Path) -> None:
    write(pattern, {"worker": WORKER})
    compose = load(pattern)
    with only_one(compose):
        result = run_local("up", pattern)
    assert (result.returncode, "another command" in result.stderr) == (1, True)


def test_a_missing_server_is_reported_with_its_package(
    pattern: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(pattern, {"prometheus": {"image": "prom/prometheus:v2.53.3"}})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    result = run_local("up", pattern)
    assert result.returncode == 1
    assert "prometheus is not installed: run `apt install prometheus`" in result.stderr


def test_every_verb_has_a_help_text() -> None:
    for verb in command.VERBS:
        result = run_local(verb, Path("--help"))
        assert result.returncode == 0
        assert "the directory of the pattern" in result.stdout


# --- logs -----------------------------------------------------------------------------------------


def test_logs_are_prefixed_and_in_the_order_of_writing(pattern: Path) -> None:
    one, two = free_port(), free_port()
    up(
        pattern,
        {
            "one": server(one, name="one"),
            "second": server(
                two, name="second", depends_on={"one": {"condition": "service_healthy"}}
            ),
        },
    )
    for port in (two, one):
        httpx.get(f"http://127.0.0.1:{port}/")
    lines = run_local("logs", pattern).stdout.splitlines()
    assert lines[0] == f"one    | listening on {one}"
    assert f"second | listening on {two}" in lines
    assert "\x1b" not in "".join(lines)
    wait_for(
        lambda: (
            [
                line.split()[0]
                for line in run_local("logs", pattern, "--tail", "2").stdout.splitlines()
            ]
            == ["second", "one"]
        ),
        "the last two lines come from the last two requests",
    )
    only = run_local("logs", pattern, "second").stdout.splitlines()
    assert all(line.startswith("second |") for line in only)
    assert run_local("logs", pattern, "--tail", "0").stdout == ""


def test_logs_can_be_followed_until_the_pattern_is_down(pattern: Path) -> None:
    port = free_port()
    up(pattern, {"api": server(port)})
    with subprocess.Popen(
        [sys.executable, "-m", "tools.run", "logs", str(pattern), "--follow", "--tail", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as follower:
        assert follower.stdout is not None
        log = state_dir(pattern) / "log" / "all"
        wait_for(
            lambda: any(f.path == str(log) for f in psutil.Process(follower.pid).open_files()),
            "the follower has opened the log",
        )
        httpx.get(f"http://127.0.0.1:{port}/followed")
        lines = iter(follower.stdout.readline, "")
        assert any("GET /followed" in line for line in lines)
        run_local("down", pattern)
        assert follower.wait(timeout=DEADLINE_SECONDS) == 0


# --- images ---------------------------------------------------------------------------------------


def redis_service(port: int) -> dict[str, Any]:
    return {
        "image": "redis:8.0",
        "command": ["redis-server", "--port", str(port), "--appendonly", "yes"],
        "volumes": ["redis-data:/data"],
        "healthcheck": {"test": ["CMD", "redis-cli", "-h", "redis", "-p", str(port), "ping"]},
    }


def test_two_clones_have_their_own_tmpfs_until_down(
    pattern: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Short, because it will hold a socket.
    with_space = tempfile.TemporaryDirectory(prefix="a ")
    monkeypatch.setattr(tempfile, "tempdir", with_space.name)
    test = ["CMD", "sh", "-c", "find /scratch/alive -mmin -1 | grep -q ."]
    worker: dict[str, Any] = {**WORKER, "healthcheck": {"test": test}, "tmpfs": ["/scratch"]}
    worker |= {"command": ["python", "worker.py"], "environment": {"ALIVE": "/scratch/alive"}}
    alive = []
    other = tmp_path / "clone"
    shutil.copytree(pattern, other)
    for clone in (pattern, other):
        (clone / "worker.py").write_text(TOUCHING, encoding="utf-8")
        up(clone, {"worker": worker})
        compose = load(clone)
        alive.append(tmpfs_paths(compose, compose.services["worker"])["/scratch"] / "alive")
    assert alive[0] != alive[1]
    assert run_local("down", pattern).returncode == 0
    assert [path.exists() for path in alive] == [False, True]
    assert run_local("down", other).returncode == 0
    assert not alive[1].exists()
    with_space.cleanup()


def test_redis_keeps_its_volume_until_down_removes_it(pattern: Path) -> None:
    port = free_port()
    services = {"redis": redis_service(port)}
    for expected in (None, b"kept"):
        up(pattern, services, volumes={"redis-data": None})
        with redis.Redis(port=port) as client:
            assert client.get("key") == expected
            client.set("key", "kept")
        assert run_local("down", pattern).returncode == 0
    assert run_local("down", pattern, "--volumes").returncode == 0
    assert not (state_dir(pattern) / "volumes").exists()


def test_postgres_is_initialized_like_its_image_and_requires_the_password(pattern: Path) -> None:
    port = free_port()
    password = f"it's {port}"
    (pattern / "schema").mkdir()
    (pattern / "schema" / "1.sql").write_text("CREATE TABLE logs (text text);", encoding="utf-8")
    (pattern / "schema" / "2.sh").write_text("psql -c \"INSERT INTO logs VALUES ('x')\"\n")
    services = {
        "postgres": {
            "image": "postgres:17",
            "command": ["postgres", "-p", str(port)],
            "expose": [str(port)],
            "environment": {
                "POSTGRES_USER": "reader",
                "POSTGRES_PASSWORD": password,
                "POSTGRES_DB": "book",
            },
            "volumes": ["data:/var/lib/postgresql/data", "./schema:/docker-entrypoint-initdb.d:ro"],
            "healthcheck": {"test": ["CMD", "pg_isready", "-U", "reader", "-d", "book"]},
        }
    }
    for expected_rows in (1, 2):
        up(pattern, services, volumes={"data": None})
        account = f"host=127.0.0.1 port={port} user=reader dbname=book"
        with psycopg2.connect(account, password=password) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT count(*) FROM logs")
            assert cursor.fetchone() == (expected_rows,)
            cursor.execute("INSERT INTO logs VALUES ('y')")
        connection.close()
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(account, password=password.upper())
        assert run_local("kill" if expected_rows == 1 else "stop", pattern, "postgres").stdout
        assert run_local("down", pattern).returncode == 0
        assert all_of(state_dir(pattern)) == []


def test_two_envoys_run_at_once_with_rewritten_addresses(pattern: Path) -> None:
    api, ports, admins = free_port(), [free_port(), free_port()], [free_port(), free_port()]
    services: dict[str, Any] = {"api": server(api)}
    for number, (port, admin) in enumerate(zip(ports, admins, strict=True)):
        config = envoy_config(port, admin, api)
        (pattern / f"envoy{number}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        services[f"envoy{number}"] = {
            "image": "envoyproxy/envoy:v1.40.0",
            "command": ["-c", "/etc/envoy/envoy.yaml", "-l", "error"],
            "ports": [f"127.0.0.1:{port}:{port}"],
            "volumes": [f"./envoy{number}.yaml:/etc/envoy/envoy.yaml:ro"],
            "depends_on": {"api": {"condition": "service_healthy"}},
            "healthcheck": {
                "test": ["CMD", "python", "-c", PROBE, f"http://127.0.0.1:{admin}/ready"]
            },
        }
    up(pattern, services)
    assert [pid_of(port) for port in ports] == [pid_of(api)] * 2
    with pytest.raises(ConnectionRefusedError), socket.socket() as client:
        # Configured as 0.0.0.0, it listens only on the loopback address.
        client.connect(("127.0.0.2", ports[0]))


def envoy_config(port: int, admin: int, api: int) -> dict[str, Any]:
    def address(host: str, number: int) -> dict[str, Any]:
        return {"socket_address": {"address": host, "port_value": number}}

    route = {"match": {"prefix": "/"}, "route": {"cluster": "api"}}
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}
        ],
    }
    filters = [{"name": "http", "typed_config": manager}]
    endpoint = {"endpoint": {"address": address("api", api)}}
    cluster = {
        "name": "api",
        "type": "STRICT_DNS",
        "load_assignment": {"cluster_name": "api", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    return {
        "admin": {"address": address("0.0.0.0", admin)},
        "static_resources": {
            "listeners": [
                {"address": address("0.0.0.0", port), "filter_chains": [{"filters": filters}]}
            ],
            "clusters": [cluster],
        },
    }


@pytest.mark.parametrize("data", [[], ["metrics:/prometheus"], ["./data:/prometheus"]], ids=str)
def test_prometheus_starts_again_with_its_data_and_rewritten_addresses(
    pattern: Path, data: list[str]
) -> None:
    port, api = free_port(), free_port()
    rules = [{"alert": "ApiDown", "expr": f'up{{instance="api:{api}"}} == 0'}]
    files: dict[str, Any] = {
        "prometheus.yml": {
            "rule_files": ["/etc/prometheus/rules.yml"],
            "scrape_configs": [
                {"job_name": "api", "static_configs": [{"targets": [f"api:{api}"]}]}
            ],
        },
        "rules.yml": {"groups": [{"name": "api", "rules": rules}]},
    }
    for name, content in files.items():
        (pattern / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    address = f"http://127.0.0.1:{port}"
    service = {
        "image": "prom/prometheus:v2.53.3",
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            f"--web.listen-address=0.0.0.0:{port}",
        ],
        "ports": [f"127.0.0.1:{port}:{port}"],
        "volumes": [*(f"./{name}:/etc/prometheus/{name}:ro" for name in files), *data],
        "healthcheck": {"test": ["CMD", "promtool", "query", "instant", address, "vector(1)"]},
    }

    def asked(path: str) -> Any:
        return httpx.get(f"{address}/api/v1/{path}").json()["data"]

    for level in ("1", "2"):
        services = {"api": server(api, environment={"LEVEL": level}), "prometheus": service}
        up(pattern, services, volumes={"metrics": None})
        assert f"- 127.0.0.1:{api}\n" in asked("status/config")["yaml"]
        (rule,) = asked("rules")["groups"][0]["rules"]
        assert (rule["name"], rule["query"]) == (
            "ApiDown",
            f'up{{instance="127.0.0.1:{api}"}} == 0',
        )
    for verb in ("stop", "start", "restart"):
        assert run_local(verb, pattern, "prometheus").returncode == 0


def test_only_the_owner_can_read_files_with_passwords(pattern: Path) -> None:
    up(pattern, {"worker": {**WORKER, "environment": {"A": "b"}}})
    state = state_dir(pattern)
    for name in ("plan.json", "supervisord.conf", "services/worker.sh"):
        assert (state / name).stat().st_mode & 0o077 == 0
    path = socket_path(load(pattern))
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    assert len(str(path)) < 100
    assert json.loads((state / "plan.json").read_text(encoding="utf-8"))
