"""Docker commands return their output, or raise an error with it."""

from pathlib import Path

import pytest

from tools.measure.docker import DockerError, ask, docker, engine, wait_until_answered

pytestmark = pytest.mark.docker


def test_a_command_returns_its_output() -> None:
    assert docker("version", "--format", "{{.Server.Version}}") == engine()


def test_a_command_receives_its_input() -> None:
    options = ["run", "--rm", "--interactive", "--network", "none"]
    assert docker(*options, "python:3.11-slim", "cat", text="as it is") == "as it is"


def test_the_error_of_a_failed_command_has_its_output() -> None:
    with pytest.raises(DockerError, match=r"(?s)docker image inspect failed: .*no-such-image"):
        docker("image", "inspect", "no-such-image")


def test_without_a_running_engine_there_is_no_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert engine() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert engine() is None


def test_a_container_without_a_server_gives_no_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.measure.docker.READY_DEADLINE_SECONDS", 1)
    program = ["python", "-c", "import time; print('not a server', flush=True); time.sleep(60)"]
    container = docker("run", "--detach", "--network", "none", "python:3.11-slim", *program)
    try:
        assert ask(container, [[0.0], [1.0]]) == [None, None]
        with pytest.raises(TimeoutError, match=r"waited 1 s for .*: not a server"):
            wait_until_answered(container, [0.0])
    finally:
        docker("rm", "--force", container)
    assert ask(container, [[0.0], [1.0]]) == [None, None]
