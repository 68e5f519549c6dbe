"""Runs Docker commands, and requests predictions from a container without a published port."""

import json
import subprocess

from tools.measure.server import wait_until
from tools.read.compose import Build, Compose

READY_DEADLINE_SECONDS = 30
# Runs inside the container, which may not be reachable from outside.
ASK = """
import json, sys
from urllib.request import ProxyHandler, build_opener
server = build_opener(ProxyHandler({}))
for line in sys.stdin:
    # Whatever the error, report no prediction for this row and continue with the next.
    try:
        with server.open("http://127.0.0.1:8000/predict", line.encode(), timeout=5) as answer:
            print(json.dumps(json.load(answer)["prediction"][0]))
    except Exception:
        print("null")
"""


class DockerError(RuntimeError):
    """A Docker command has failed; the message includes its output."""


def docker(*arguments: str, text: str | None = None) -> str:
    """Runs a Docker command and returns its output."""
    run = subprocess.run(
        ["docker", *arguments], input=text, capture_output=True, text=True, check=False
    )
    if run.returncode:
        wrote = (run.stdout + run.stderr).strip()
        raise DockerError(f"docker {' '.join(arguments[:2])} failed: {wrote}")
    return run.stdout.strip()


def build_options(compose: Compose, service: str) -> list[str]:
    """Returns the options that give a build the indexes and proxies of the shell, as Compose does.

    Arguments with a value are left out.
    """
    build = compose.services[service].build or Build()
    secrets = [f"id={name},env={compose.secrets[name]}" for name in build.secrets]
    arguments = [name for name, value in build.args.items() if value is None]
    return [
        *(word for secret in secrets for word in ("--secret", secret)),
        *(word for name in arguments for word in ("--build-arg", name)),
    ]


def engine() -> str | None:
    """Returns the version of the engine; None if no engine is running."""
    try:
        return docker("version", "--format", "{{.Server.Version}}")
    except (OSError, DockerError):
        return None


def ask(container: str, rows: list[list[float]]) -> list[list[float] | None]:
    """Requests a prediction for each row, and returns None for a row without a response."""
    lines = "".join(json.dumps({"data": [row]}) + "\n" for row in rows)
    try:
        answers = docker("exec", "--interactive", container, "python", "-c", ASK, text=lines)
    except DockerError:
        # The container no longer runs.
        return [None] * len(rows)
    return [json.loads(line) for line in answers.splitlines()]


def wait_until_answered(container: str, row: list[float]) -> None:
    """Waits for a prediction; on a timeout the error includes the logs of the container."""
    what = f"a response from {container[:12]}"
    try:
        wait_until(lambda: ask(container, [row]) != [None], what, READY_DEADLINE_SECONDS)
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {docker('logs', container)}") from error
