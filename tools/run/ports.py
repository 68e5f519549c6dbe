"""Chooses the ports of a pattern on this machine, and says who holds one that is taken.

With Docker, `make up` runs this as a program before Compose builds anything. Nothing may be
installed then, so psutil may be missing.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from tools.read.patterns import canonical, patterns
from tools.read.ports import published_ports
from tools.read.profiles import active_profiles, without_waiting

if TYPE_CHECKING:
    from tools.read.compose import Compose

PROJECT_DIRECTORY = "com.docker.compose.project.working_dir"
CALL_SECONDS = 1
DOCKER_SECONDS = 10
COMMAND_MAX = 200


class PortError(Exception):
    """A port cannot be used; the message says why and what to do."""


def choose(compose: Compose, own: Container[int], immovable: Container[str]) -> dict[int, int]:
    """Maps each port in the file to one on this machine.

    A published port is where the file says. Any other port moves if it is taken, so that patterns
    run side by side, except those of `immovable` services. `own` are ports that will be freed.
    """
    chosen = compose.published()
    services = compose.of_up().values()
    stated = [port for service in services for port in service.ports]
    for service in services:
        for port in service.ports:
            if port not in chosen:
                taken = port in chosen.values() or not (port in own or is_free(port))
                may_move = taken and service.name not in immovable
                chosen[port] = free_port({*stated, *chosen.values()}) if may_move else port
    return chosen


def free_port(but_not: Container[int] = ()) -> int:
    """Returns a port that nobody uses now."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in but_not:
            return port


def is_free(port: int) -> bool:
    try:
        return not is_taken(port)
    except OSError:
        return False


def is_taken(port: int) -> bool:
    """Tells whether somebody listens; raises an OSError if this user may not use the port."""
    with socket.socket() as probe:
        # Without this a port counts as taken for a minute after its connections were closed.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise
    # macOS allows this address even if another program listens on all addresses, and `localhost`
    # is the address of IPv6 first.
    return any(accepts(family, port) for family in (socket.AF_INET, socket.AF_INET6))


def accepts(family: socket.AddressFamily, port: int) -> bool:
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    with suppress(OSError), socket.socket(family) as caller:
        caller.settimeout(CALL_SECONDS)
        caller.connect((address, port))
        # Without a listener, a socket can happen to connect to itself.
        return bool(caller.getsockname()[1] != port)
    return False


def refuse_taken(pattern_dir: Path, ports: list[int]) -> None:
    """Raises a PortError that names who holds one of the ports, and the ways out."""
    text = (pattern_dir / "docker-compose.yml").read_text(encoding="utf-8")
    variables = {port.host: port.variable for port in published_ports(text, os.environ)}
    for port in ports:
        try:
            taken = is_taken(port)
        except OSError as error:
            raise PortError(f"port {port} cannot be used: {error.strerror}; set another") from None
        if taken:
            ways_out = [holder_of(port)]
            if variable := variables.get(str(port)):
                above = (n for n in range(port + 1, 65536) if n not in ports and is_free(n))
                free = next(above, None) or free_port(ports)
                ways_out.append(f"or use another port: {variable}={free} make up")
            raise PortError(f"port {port} on 127.0.0.1 is in use {', '.join(ways_out)}")


def holder_of(port: int) -> str:
    """Describes who holds a port and how to stop it."""
    if container := container_on(port):
        name, directory = container
        if (directory / "Makefile").is_file():
            return is_up(directory, f"with Docker, container {name}")
        return f"by the container {name}: stop it with `docker stop {name}`"
    with suppress(ImportError):
        from tools.run.processes import command_of, listener_of, state_of

        if process := listener_of(port):
            who = f"pid {process.pid}, {shorten(command_of(process), COMMAND_MAX)}"
            if state := state_of(process, [canonical(path) / ".local" for path in patterns()]):
                return is_up(state.parent, who)
            return f"by another program ({who}): stop it"
    return "by another program: stop it"


def is_up(directory: Path, who: str) -> str:
    down = f"make -C {shlex.quote(str(directory))} down"
    return f"because {directory.name} is up ({who}): stop it with `{down}`"


def container_on(port: int) -> tuple[str, Path] | None:
    """Returns the name of the container that publishes a port, and its Compose directory."""
    shown = f'{{{{.Names}}}}\t{{{{.Label "{PROJECT_DIRECTORY}"}}}}'
    command = ["docker", "ps", "--filter", f"publish={port}", "--format", shown]
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=DOCKER_SECONDS
        ).stdout.splitlines()
        if found:
            name, _, directory = found[0].partition("\t")
            return name, Path(directory or os.devnull)
    return None


def main() -> None:
    pattern_dir = Path(sys.argv[1]).resolve()
    text = (pattern_dir / "docker-compose.yml").read_text(encoding="utf-8")
    text = without_waiting(text, active_profiles(os.environ))
    hosts = [port.host for port in published_ports(text, os.environ)]
    # What is not a port is for Compose to refuse.
    ports = [int(host) for host in hosts if host.isdecimal() and 0 < int(host) < 65536]
    for port in ports:
        # Docker may publish a port that this user may not use.
        with suppress(OSError):
            container = container_on(port) if is_taken(port) else None
            # Compose replaces the pattern's own containers.
            if not container or container[1].resolve() != pattern_dir:
                try:
                    refuse_taken(pattern_dir, [port])
                except PortError as error:
                    sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
