"""Stops a pattern, or one of its services."""

import shutil
from pathlib import Path
from time import monotonic, sleep

from tools.read.compose import Compose, load
from tools.run.rewrite import state_dir, temporary_dir
from tools.run.state import only_one
from tools.run.supervisor import running, states, supervisor
from tools.run.takedown import show_death, take_down

POLL_SECONDS = 0.02


def down(pattern_dir: Path, volumes: bool = False) -> None:
    """Stops every service; the volumes stay unless `volumes` is set."""
    compose = load(pattern_dir)
    with only_one(compose):
        show_death(compose)
        was_up = take_down(compose)
        if volumes:
            remove_volumes(compose)
    print(f"{compose.name} is down" if was_up else f"{compose.name} is not up")


def stop(pattern_dir: Path, service: str) -> None:
    """Stops one service with its own stop signal and grace period; the others stay up."""
    compose = running(pattern_dir)
    compose.service(service)
    with only_one(compose), supervisor(compose) as server:
        begin = monotonic()
        server.supervisor.stopProcessGroup(service)
        print(f"{service} stopped in {monotonic() - begin:.1f} s")


def kill(pattern_dir: Path, service: str) -> None:
    """Kills every process of one service with SIGKILL; it stays down until it is started."""
    compose = running(pattern_dir)
    compose.service(service)
    with only_one(compose), supervisor(compose) as server:
        server.pattern.kill(service)
        while states(compose)[service] & {"STOPPING", "RUNNING", "STARTING"}:
            sleep(POLL_SECONDS)
        print(f"{service} killed")


def remove_volumes(compose: Compose) -> None:
    shutil.rmtree(state_dir(compose.pattern_dir) / "volumes", ignore_errors=True)
    for purpose in ("volumes", "scratch"):
        shutil.rmtree(temporary_dir(compose.pattern_dir, purpose), ignore_errors=True)
