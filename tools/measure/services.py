"""Runs services of a pattern as its compose file says, without Docker and on free ports.

The runner of `make up` keeps the ports of the file, which only one pattern at a time can have.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tools.measure.server import Server, free_port, serve
from tools.measure.servers import PostgresServer, Process, RedisServer
from tools.read.compose import FILE_NAME, Compose, Service, load
from tools.run.rewrite import Launch, launch_of, state_dir

NOT_COPIED = shutil.ignore_patterns("models", ".local", "__pycache__")


class ServiceError(RuntimeError):
    """A service could not be started; the message says what it wrote."""


def copy_of(pattern: Path, directory: Path) -> Compose:
    """Copies a pattern into a directory, gives every service a free port, and trains its model."""
    shutil.copytree(pattern, directory, ignore=NOT_COPIED, dirs_exist_ok=True)
    used = {port for service in load(pattern).services.values() for port in service.ports}
    ports = {str(port): str(free_port()) for port in used}
    # A Dockerfile may set the port as well.
    for path in (directory / FILE_NAME, directory / "Dockerfile"):
        if path.exists():
            text = path.read_text("utf-8")
            path.write_text(re.sub(r"\b\d+\b", lambda m: ports.get(m[0], m[0]), text), "utf-8")
    compose = load(directory)
    # As `make up` does where training is not one of the services.
    if (directory / "train").is_dir() and "train" not in compose.services:
        run_to_its_end("train", [sys.executable, "-m", "train"], directory)
    return compose


def asgi_services(compose: Compose) -> list[Service]:
    """Returns the services of the pattern's own that uvicorn serves, in the order of their names.

    Of replicas, which differ in nothing but their port, only the first is returned.
    """
    found: dict[str, Service] = {}
    for _, service in sorted(compose.services.items()):
        if service.build and service.ports and "uvicorn" in service.command:
            ports = set(map(str, service.ports))
            command = [word for word in service.command if word not in ports]
            found.setdefault(f"{service.build} {command} {service.environment}", service)
    return list(found.values())


@contextmanager
def run_service(compose: Compose, name: str, **environment: str) -> Iterator[Server]:
    """Runs a server of the pattern's own with more settings than the file gives it.

    Each call takes a free port, so a service can run twice.

    Raises:
        ServerError: it ended before it was ready.
    """
    launch = launched(compose, name)
    (old,), new = launch.service.ports, free_port()
    moved = {str(old): str(new)}
    with serve(
        [moved.get(word, word) for word in launch.command],
        cwd=launch.directory,
        env={key: moved.get(value, value) for key, value in launch.environment.items()}
        | environment,
        ready_url=f"http://127.0.0.1:{new}/ready",
        port=new,
    ) as server:
        yield server


@contextmanager
def run_around(compose: Compose, name: str) -> Iterator[None]:
    """Runs what a service depends on, and the workers, which take from a queue what it puts there.

    Raises:
        ServiceError: one of them could not be started.
    """
    workers = {
        service.name
        for service in compose.services.values()
        if service.build and not service.ports and service.name not in compose.one_shots()
    }
    needed = dependencies_of(compose, {name, *workers}) | workers - {name}
    with ExitStack() as stack:
        for service in compose.services.values():
            if service.name in needed:
                start(compose, service, stack)
        yield


def dependencies_of(compose: Compose, names: set[str]) -> set[str]:
    """Returns the names of the services that others depend on, and of those these depend on."""
    found: set[str] = set()
    while names:
        names = {other for name in names for other in compose.services[name].depends_on} - found
        found |= names
    return found


def start(compose: Compose, service: Service, stack: ExitStack) -> None:
    """Starts a service, and has it stopped with the others."""
    image = service.image or ""
    if service.name in compose.one_shots():
        launch = launched(compose, service.name)
        command = [*launch.command, *service.quick_arguments]
        run_to_its_end(service.name, command, launch.directory, dict(launch.environment))
    elif service.build and service.ports:
        launch = launched(compose, service.name)
        (port,) = service.ports
        stack.enter_context(
            serve(
                launch.command,
                cwd=launch.directory,
                env=launch.environment,
                ready_url=f"http://127.0.0.1:{port}/ready",
                port=port,
            )
        )
    elif service.build:
        launch = launched(compose, service.name)
        log = state_dir(compose.pattern_dir) / f"{service.name}.log"
        stack.enter_context(
            Process(launch.command, cwd=launch.directory, log=log, env=launch.environment)
        )
    elif image.startswith("redis:"):
        (port,) = service.ports
        folder = state_dir(compose.pattern_dir) / service.name
        stack.enter_context(RedisServer(folder, port=port))
    elif image.startswith("postgres:"):
        (port,) = service.ports
        user = service.environment["POSTGRES_USER"]
        stack.enter_context(
            PostgresServer(
                port=port,
                user=user,
                password=service.environment["POSTGRES_PASSWORD"],
                database=service.environment.get("POSTGRES_DB", user),
            )
        )
    else:
        raise ServiceError(f"{service.name}: no function of tools/measure/servers.py runs {image}")


def launched(compose: Compose, name: str) -> Launch:
    """Returns what runs a service, and makes the folders that it expects."""
    launch = launch_of(compose, compose.services[name])
    for mount in launch.service.mounts:
        if mount.named:
            volume = state_dir(compose.pattern_dir) / "volumes" / mount.source
            volume.mkdir(parents=True, exist_ok=True)
    state_dir(compose.pattern_dir).mkdir(exist_ok=True)
    return launch


def run_to_its_end(
    name: str, command: list[str], directory: Path, env: dict[str, str] | None = None
) -> None:
    """Runs a program that ends by itself.

    Raises:
        ServiceError: it failed.
    """
    ended = subprocess.run(
        command,
        cwd=directory,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise ServiceError(f"{name} failed with exit code {ended.returncode}: {ended.stdout}")
