"""Runs commands of Docker, and asks a prediction server in a container that has no port outside."""

import json
import subprocess

from tools.measure.server import wait_until

READY_DEADLINE_SECONDS = 30
# Runs inside of the container, because from outside there may be no way to it.
ASK = """
import json, sys
from urllib.request import urlopen
for line in sys.stdin:
    # Whatever went wrong, this row has no answer, and the next one is asked for.
    try:
        with urlopen("http://127.0.0.1:8000/predict", line.encode(), timeout=5) as answer:
            print(json.dumps(json.load(answer)["prediction"][0]))
    except Exception:
        print("null")
"""


class DockerError(RuntimeError):
    """A command of Docker has failed; it says what it wrote."""


def docker(*arguments: str, text: str | None = None) -> str:
    """Runs a command of Docker and returns what it printed.

    Raises:
        DockerError: it failed.
    """
    run = subprocess.run(
        ["docker", *arguments], input=text, capture_output=True, text=True, check=False
    )
    if run.returncode:
        wrote = (run.stdout + run.stderr).strip()
        raise DockerError(f"docker {' '.join(arguments[:2])} failed: {wrote}")
    return run.stdout.strip()


def engine() -> str | None:
    """Returns the version of the engine, None where none answers."""
    try:
        return docker("version", "--format", "{{.Server.Version}}")
    except (OSError, DockerError):
        return None


def ask(container: str, rows: list[list[float]]) -> list[list[float] | None]:
    """Returns the probabilities that the server in a container gives rows, one request each.

    A row without an answer has None.
    """
    lines = "".join(json.dumps({"data": [row]}) + "\n" for row in rows)
    try:
        answers = docker("exec", "--interactive", container, "python", "-c", ASK, text=lines)
    except DockerError:
        # There is no process any more that could be asked.
        return [None] * len(rows)
    return [json.loads(line) for line in answers.splitlines()]


def wait_until_answered(container: str, row: list[float]) -> None:
    """Asks until there is an answer.

    Raises:
        TimeoutError: there is none within the deadline; it says what the container wrote.
    """
    what = f"an answer of {container[:12]}"
    try:
        wait_until(lambda: ask(container, [row]) != [None], what, READY_DEADLINE_SECONDS)
    except TimeoutError as error:
        raise TimeoutError(f"{error}: {docker('logs', container)}") from error
