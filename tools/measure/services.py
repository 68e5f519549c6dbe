"""Runs the services of a pattern as its Compose file says, without Docker and on free ports.

`make up` uses the ports of the file, so it can run only one pattern at a time.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tools.measure.server import Server, serve, wait_until
from tools.measure.servers import PostgresServer, Process, RedisServer
from tools.read.compose import FILE_NAME, Compose, Service, load
from tools.run.plan import make_folders
from tools.run.ports import free_port
from tools.run.rewrite import CONFIG_SUFFIXES, Launch, launch_of, state_dir, tmpfs_dir

NOT_COPIED = shutil.ignore_patterns("models", ".local", "__pycache__", "node_modules")


class ServiceError(RuntimeError):
    """A service could not be started; the message includes its output."""


def copy_of(pattern: Path, directory: Path) -> Compose:
    """Copies a pattern into a directory, gives every service a free port, and trains its model."""
    if (pattern / "package.json").is_file():
        # What npm installs is fetched once, and copied.
        run_to_its_end("runtime", ["make", "--silent", "RUN=local", "runtime"], pattern)
    shutil.copytree(pattern, directory, ignore=NOT_COPIED, dirs_exist_ok=True)
    used = {port for service in load(pattern).services.values() for port in service.ports}
    ports = {str(port): str(free_port()) for port in used}
    mounts = {
        mount.source for service in load(pattern).services.values() for mount in service.mounts
    }
    # The Dockerfile may set the port too, and a mounted file may name it.
    mounted = [name for name in sorted(mounts) if name.endswith(CONFIG_SUFFIXES)]
    dockerfiles = {f"{service.context}/Dockerfile" for service in load(pattern).built()}
    for path in (directory / name for name in (FILE_NAME, *dockerfiles, *mounted)):
        if path.exists():
            text = path.read_text("utf-8")
            path.write_text(re.sub(r"\b\d+\b", lambda m: ports.get(m[0], m[0]), text), "utf-8")
    compose = load(directory)
    # As in `make up`, if no service does the training.
    for trainer in compose.directories() if "train" not in compose.services else ():
        if (trainer / "train").is_dir():
            run_to_its_end("train", [sys.executable, "-m", "train"], trainer)
    return compose


def asgi_services(compose: Compose) -> list[Service]:
    """Returns the built services that uvicorn runs, by name, without further replicas of the same.

    Replicas differ only in their port.
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
    """Runs a built service on a free port, with settings in addition to those of the file."""
    with launched(compose, name) as launch:
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
def run_around(compose: Compose, name: str, **environment: str) -> Iterator[None]:
    """Runs the dependencies of a service and the pattern's workers.

    Servers among them get settings in addition to those of the file.
    """
    workers = {
        service.name
        for service in compose.services.values()
        if service.build
        and not (service.ports or service.profiles or service.name in compose.one_shots())
    }
    needed = dependencies_of(compose, {name, *workers}) | workers - {name}
    with ExitStack() as stack:
        for service in compose.services.values():
            if service.name in needed:
                start(compose, service, stack, environment)
        yield


def dependencies_of(compose: Compose, names: set[str]) -> set[str]:
    """Returns the names of all direct and indirect dependencies."""
    found: set[str] = set()
    while names:
        names = {other for name in names for other in needed_by(compose, name)} - found
        found |= names
    return found


def needed_by(compose: Compose, name: str) -> set[str]:
    """Returns what a service depends on and, if two call each other, what only a URL names."""
    service = compose.services[name]
    settings = " ".join(service.environment.values())
    named = {
        other
        for other in compose.services
        if re.search(rf"(?<![\w.-]){re.escape(other)}:\d", settings)
    }
    return named | set(service.depends_on)


def start(
    compose: Compose, service: Service, stack: ExitStack, of_servers: Mapping[str, str]
) -> None:
    """Starts a service, which the stack stops, with more settings if it is a server."""
    image = service.image or ""
    if service.build:
        launch = stack.enter_context(launched(compose, service.name))
    if service.build and service.name in compose.one_shots():
        command = [*launch.command, *service.quick_arguments]
        run_to_its_end(service.name, command, launch.directory, dict(launch.environment))
    elif service.build and service.ports:
        # Of several ports, one is published: that of its pages.
        published = [port.container for port in service.published_ports]
        (port,) = published or service.ports
        path = "/" if service.without_ready else "/ready"
        stack.enter_context(
            serve(
                launch.command,
                cwd=launch.directory,
                env={**launch.environment, **of_servers},
                ready_url=f"http://127.0.0.1:{port}{path}",
                port=port,
            )
        )
    elif service.build:
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
    elif image.startswith("envoyproxy/envoy:"):
        launch = stack.enter_context(launched(compose, service.name))
        log = state_dir(compose.pattern_dir) / f"{service.name}.log"
        stack.enter_context(
            Process(launch.command, cwd=launch.directory, log=log, env=launch.environment)
        )
        wait_until(partial(is_healthy, launch), f"{service.name} to be ready ({log})")
    else:
        raise ServiceError(f"{service.name}: tools/measure/servers.py cannot run {image}")


def is_healthy(launch: Launch) -> bool:
    command = subprocess.run(launch.health_command, env=launch.environment, check=False)
    return command.returncode == 0


@contextmanager
def launched(compose: Compose, name: str) -> Iterator[Launch]:
    """Creates the folders that a service expects and yields how to run it."""
    launch = launch_of(compose, compose.services[name])
    state_dir(compose.pattern_dir).mkdir(exist_ok=True)
    make_folders(compose, launch)
    try:
        yield launch
    finally:
        shutil.rmtree(tmpfs_dir(compose, launch.service), ignore_errors=True)


def run_to_its_end(
    name: str, command: list[str], directory: Path, env: dict[str, str] | None = None
) -> None:
    """Runs a program until it ends; raises a ServiceError if it fails."""
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
