"""Talks to the supervisord of a pattern."""

import json
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from tools.read.compose import Compose, load
from tools.run.state import LocalError, is_up, read_plan, socket_path
from tools.run.takedown import show_death


@contextmanager
def supervisor(compose: Compose) -> Iterator[Any]:
    transport = SupervisorTransport(serverurl=f"unix://{socket_path(compose)}")
    try:
        yield xmlrpc.client.ServerProxy("http://localhost", transport=transport)
    except (ConnectionError, FileNotFoundError, xmlrpc.client.ProtocolError):
        show_death(compose)
        raise LocalError(f"the supervisor of {compose.name} has ended: run `make up`") from None
    except xmlrpc.client.Fault as fault:
        raise LocalError(f"the supervisor of {compose.name} failed: {fault.faultString}") from None
    finally:
        transport.close()


def running(pattern_dir: Path) -> Compose:
    compose = load(pattern_dir)
    if not is_up(compose):
        show_death(compose)
        raise LocalError(f"{compose.name} is not up: run `make up` first")
    if set(json.loads(read_plan(compose))) != set(compose.services):
        raise LocalError("docker-compose.yml has changed since `make up`: run it again")
    return compose


def states(compose: Compose) -> dict[str, set[str]]:
    """Returns the process states of each service; `DONE` means exited with status 0."""
    found: dict[str, set[str]] = {name: set() for name in compose.services}
    with supervisor(compose) as server:
        for info in server.supervisor.getAllProcessInfo():
            done = info["statename"] == "EXITED" and info["exitstatus"] == 0
            found.setdefault(info["group"], set()).add("DONE" if done else info["statename"])
    return found


def missing_services(compose: Compose) -> list[str]:
    one_shots = compose.one_shots()
    return [
        name
        for name, found in states(compose).items()
        if found != {"RUNNING"} and not (name in one_shots and found == {"DONE"})
    ]
