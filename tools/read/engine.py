"""Says why Docker cannot be used: `python -m tools.read.engine` prints nothing if it can.

make runs this before anything is installed.
"""

from __future__ import annotations

import subprocess

DEADLINE_SECONDS = 30
OR = "or run without Docker: RUN=local"


class EngineError(Exception):
    """Docker cannot be used; the message says why and what to do."""


def check() -> None:
    """Raises an EngineError unless an engine answers and Compose v2 is there.

    What programs fail at first comes first, because each question takes time.
    """
    works, said = ask("info")
    if not works:
        refuse_podman(said)
        reason = said.strip().splitlines()[-1:] or ["it says nothing"]
        raise EngineError(f"no Docker engine answers ({reason[0]}): start or install Docker, {OR}")
    refuse_podman(ask("--version")[1])
    works, said = ask("compose", "version")
    if not works:
        raise EngineError(f"Docker has no Compose v2: install docker-compose-plugin, {OR}")


def refuse_podman(said: str) -> None:
    if "podman" in said.lower():
        reason = "with Podman's Compose nothing here has been tested"
        raise EngineError(f"`docker` is Podman, and {reason}: install Docker, {OR}")


def ask(*question: str) -> tuple[bool, str]:
    try:
        answer = subprocess.run(
            ["docker", *question],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return False, "docker is not installed"
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return answer.returncode == 0, answer.stdout


if __name__ == "__main__":
    try:
        check()
    except EngineError as error:
        print(error)
