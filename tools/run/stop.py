"""Stops a pattern or one of its services."""

import shutil
from pathlib import Path
from time import monotonic, sleep

from tools.read.compose import load
from tools.run.rewrite import state_dir, temporary_dir
from tools.run.state import only_one
from tools.run.supervisor import running, states, supervisor
from tools.run.takedown import show_death, take_down

POLL_SECONDS = 0.02


def down(pattern_dir: Path, volumes: bool = False) -> None:
    """Stops every service and, if `volumes` is set, deletes the volumes."""
    compose = load(pattern_dir)
    with only_one(compose):
        show_death(compose)
        was_up = take_down(compose)
        if volumes:
            shutil.rmtree(state_dir(compose.pattern_dir) / "volumes", ignore_errors=True)
            for purpose in ("volumes", "scratch"):
                shutil.rmtree(temporary_dir(compose.pattern_dir, purpose), ignore_errors=True)
    print(f"{compose.name} is down" if was_up else f"{compose.name} is not up")


def stop(pattern_dir: Path, service: str) -> None:
    """Stops one service with its stop signal and grace period; the others keep running."""
    compose = running(pattern_dir)
    compose.service(service)
    with only_one(compose), supervisor(compose) as server:
        begin = monotonic()
        server.supervisor.stopProcessGroup(service)
        print(f"{service} stopped in {monotonic() - begin:.1f} s")


def kill(pattern_dir: Path, service: str) -> None:
    """Sends SIGKILL to every process of one service, which stays down until it is started."""
    compose = running(pattern_dir)
    compose.service(service)
    with only_one(compose), supervisor(compose) as server:
        server.pattern.kill(service)
        while states(compose)[service] & {"STOPPING", "RUNNING", "STARTING"}:
            sleep(POLL_SECONDS)
        print(f"{service} killed")
