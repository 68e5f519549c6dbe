"""Reads a pattern's `docker-compose.yml` and refuses what does not run the same without Docker.

`load` returns the services in the order in which they start. Whatever lies outside the supported
subset of Compose is a `ComposeError` that names the file, the service and the key, so that a
pattern never behaves differently on a laptop because a setting was skipped in silence.
"""

import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import yaml

from tools.read.strict_yaml import documents_of

FILE_NAME = "docker-compose.yml"

TOP_KEYS = ("name", "services", "volumes")
# A container is isolated and limited by these; a process on a laptop has nothing they apply to.
DOCKER_ONLY_KEYS = (
    "read_only",
    "tmpfs",
    "cap_drop",
    "security_opt",
    "user",
    "init",
    "mem_limit",
    "cpus",
    "pids_limit",
)
SERVICE_KEYS = (
    "build",
    "image",
    "command",
    "environment",
    "ports",
    "expose",
    "volumes",
    "depends_on",
    "healthcheck",
    "restart",
    "stop_signal",
    "stop_grace_period",
    "deploy",
    "labels",
    *DOCKER_ONLY_KEYS,
)
BUILD_KEYS = ("context", "dockerfile", "target", "args")
HEALTH_KEYS = ("test", "interval", "timeout", "retries", "start_period", "start_interval")
CONDITIONS = ("service_started", "service_healthy", "service_completed_successfully")
RESTARTS = ("no", "on-failure", "unless-stopped", "always")

# The port on which the server of an image listens when its service states none.
DEFAULT_PORTS: Mapping[str, int | None] = {
    "redis": 6379,
    "postgres": 5432,
    "envoyproxy/envoy": None,
    "prom/prometheus": 9090,
}

VARIABLE = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*):-([^${}]*)\}|\$")
SERVICE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]*")
PUBLISHED_PORT = re.compile(r"127\.0\.0\.1:(\d{1,5}):(\d{1,5})")
DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:us|ms|s|m|h))+")
DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)")
SECONDS_OF_UNIT = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class ComposeError(Exception):
    """Says what in a compose file does not run without Docker."""


@dataclass(frozen=True)
class Build:
    context: str
    dockerfile: str
    target: str | None
    args: Mapping[str, str]


@dataclass(frozen=True)
class HealthCheck:
    test: tuple[str, ...]
    interval_seconds: float
    timeout_seconds: float
    retries: int
    start_period_seconds: float


@dataclass(frozen=True)
class Mount:
    """A directory or file of the pattern (`./source`), or a named volume, seen at `target`."""

    source: str
    target: str
    named: bool
    read_only: bool


@dataclass(frozen=True)
class Service:
    name: str
    build: Build | None
    image: str | None
    command: tuple[str, ...]
    environment: Mapping[str, str]
    published_ports: tuple[int, ...]
    # Every port on which the service listens, as far as the file says so.
    ports: tuple[int, ...]
    mounts: tuple[Mount, ...]
    depends_on: Mapping[str, str]
    health: HealthCheck | None
    restart: str
    stop_signal: str
    stop_grace_seconds: float
    replicas: int
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Compose:
    path: Path
    name: str
    # In the order in which they start: a service comes after those that it depends on.
    services: Mapping[str, Service]
    volumes: tuple[str, ...]

    @property
    def pattern_dir(self) -> Path:
        return self.path.parent

    def service(self, name: str) -> Service:
        if name not in self.services:
            known = ", ".join(self.services)
            raise ComposeError(f'{FILE_NAME}: there is no service "{name}"; services: {known}')
        return self.services[name]

    def one_shots(self) -> set[str]:
        """Names the services that end by design: another one waits until they have succeeded."""
        return {
            dependency
            for service in self.services.values()
            for dependency, condition in service.depends_on.items()
            if condition == "service_completed_successfully"
        }


def load(pattern_dir: Path) -> Compose:
    path = pattern_dir.resolve() / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ComposeError(f"{path} does not exist; name the directory of a pattern") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ComposeError(f"{path} cannot be read: {error}") from None
    try:
        documents = documents_of(text) or [None]
    except yaml.YAMLError as error:
        raise ComposeError(f"{FILE_NAME}: not valid YAML: {one_line(error)}") from None

    if len(documents) > 1:
        refuse(FILE_NAME, "there are several documents in it")
    document = mapping(documents[0], FILE_NAME)
    refuse_unknown_keys(document, TOP_KEYS, FILE_NAME)
    volumes = tuple(mapping(document.get("volumes") or {}, f"{FILE_NAME}: volumes"))
    for volume in volumes:
        if document["volumes"][volume]:
            refuse(f'{FILE_NAME}: volume "{volume}"', "options are not supported without Docker")
    raw_services = mapping(document.get("services"), f"{FILE_NAME}: services")
    if not raw_services:
        refuse(FILE_NAME, "there are no services")

    services = [read_service(name, raw, volumes) for name, raw in raw_services.items()]
    services = with_stated_ports(in_start_order(services))
    refuse_shared_ports(services)
    name = path.parent.name
    if "name" in document:
        place = f"{FILE_NAME}: name"
        name = string(interpolated(document["name"], place), place)
    return Compose(path, name, {service.name: service for service in services}, volumes)


# --- one service ----------------------------------------------------------------------------------


def read_service(name: str, raw: Any, volumes: tuple[str, ...]) -> Service:
    place = f'{FILE_NAME}: service "{name}"'
    if not SERVICE_NAME.fullmatch(name):
        refuse(place, "a service name holds only letters, digits, - and _")
    raw = interpolated(mapping(raw, place), place)
    refuse_unknown_keys(raw, SERVICE_KEYS, place)

    build = read_build(raw["build"], f"{place}: build") if "build" in raw else None
    image = string(raw["image"], f"{place}: image") if "image" in raw else None
    command = strings(raw.get("command", []), f"{place}: command")
    if build is None and image is None:
        refuse(place, "it needs `build` or `image`")
    if build is not None and not command:
        refuse(place, "a service that is built needs a `command` to run without Docker")
    if build is None and image is not None and repository(image) not in DEFAULT_PORTS:
        known = ", ".join(DEFAULT_PORTS)
        refuse(place, f'the image "{image}" is not known without Docker; known images: {known}')

    published = read_published_ports(raw.get("ports", []), f"{place}: ports")
    exposed = read_exposed_ports(raw.get("expose", []), f"{place}: expose")
    restart = raw.get("restart", "no")
    # An unquoted `no` is the boolean false in YAML 1.1.
    restart = "no" if restart is False else restart
    if restart not in RESTARTS:
        refuse(f"{place}: restart", f"{restart!r} is not one of {', '.join(RESTARTS)}")
    return Service(
        name=name,
        build=build,
        image=image,
        command=command,
        environment=texts(raw.get("environment", {}), f"{place}: environment"),
        published_ports=published,
        ports=tuple(dict.fromkeys([*published, *exposed])),
        mounts=read_mounts(raw.get("volumes", []), volumes, f"{place}: volumes"),
        depends_on=read_depends_on(raw.get("depends_on", []), f"{place}: depends_on"),
        health=read_health(raw["healthcheck"], f"{place}: healthcheck")
        if "healthcheck" in raw
        else None,
        restart=restart,
        stop_signal=read_signal(raw.get("stop_signal", "SIGTERM"), f"{place}: stop_signal"),
        stop_grace_seconds=seconds(
            raw.get("stop_grace_period", "10s"), f"{place}: stop_grace_period"
        ),
        replicas=read_replicas(raw.get("deploy", {}), f"{place}: deploy"),
        labels=texts(raw.get("labels", {}), f"{place}: labels"),
    )


def read_build(raw: Any, place: str) -> Build:
    if isinstance(raw, str):
        return Build(context=raw, dockerfile="Dockerfile", target=None, args={})
    raw = mapping(raw, place)
    refuse_unknown_keys(raw, BUILD_KEYS, place)
    return Build(
        context=string(raw.get("context", "."), f"{place}: context"),
        dockerfile=string(raw.get("dockerfile", "Dockerfile"), f"{place}: dockerfile"),
        target=string(raw["target"], f"{place}: target") if "target" in raw else None,
        args=texts(raw.get("args", {}), f"{place}: args"),
    )


def read_published_ports(raw: Any, place: str) -> tuple[int, ...]:
    ports = []
    for entry in strings(raw, place):
        match = PUBLISHED_PORT.fullmatch(entry)
        if not match or match[1] != match[2] or not 0 < int(match[1]) < 65536:
            refuse(place, f'"{entry}" is not supported without Docker; write "127.0.0.1:PORT:PORT"')
        ports.append(int(match[1]))
    return tuple(ports)


def read_exposed_ports(raw: Any, place: str) -> tuple[int, ...]:
    ports = []
    for entry in a_list(raw, place):
        if not str(entry).isdecimal() or not 0 < int(entry) < 65536:
            refuse(place, f"{entry!r} is not a port")
        ports.append(int(entry))
    return tuple(ports)


def read_mounts(raw: Any, volumes: tuple[str, ...], place: str) -> tuple[Mount, ...]:
    mounts = []
    for entry in strings(raw, place):
        source, _, rest = entry.partition(":")
        target, _, mode = rest.partition(":")
        if not target.startswith("/") or target == "/" or mode not in ("", "ro", "rw"):
            refuse(place, f'"{entry}": write "./directory:/path[:ro]" or "name:/path[:ro]"')
        named = SERVICE_NAME.fullmatch(source) is not None
        if named and source not in volumes:
            refuse(place, f'"{source}" is not declared under the top-level `volumes`')
        if not named and (not source.startswith("./") or ".." in PurePosixPath(source).parts):
            refuse(place, f'"{source}" is outside the pattern; a source starts with "./"')
        mounts.append(Mount(source, str(PurePosixPath(target)), named, mode == "ro"))
    return tuple(mounts)


def read_depends_on(raw: Any, place: str) -> dict[str, str]:
    if isinstance(raw, list):
        return dict.fromkeys(strings(raw, place), "service_started")
    conditions = {}
    for name, options in mapping(raw, place).items():
        options = mapping(options, f"{place}: {name}")
        refuse_unknown_keys(options, ("condition",), f"{place}: {name}")
        condition = options.get("condition", "service_started")
        if condition not in CONDITIONS:
            refuse(f"{place}: {name}", f"{condition!r} is not one of {', '.join(CONDITIONS)}")
        conditions[name] = condition
    return conditions


def read_health(raw: Any, place: str) -> HealthCheck:
    raw = mapping(raw, place)
    refuse_unknown_keys(raw, HEALTH_KEYS, place)
    test = strings(raw.get("test"), f"{place}: test")
    if len(test) < 2 or test[0] != "CMD":
        refuse(f"{place}: test", 'write it as ["CMD", "program", "argument"]')
    # Without Docker a service that starts is asked far more often than this says.
    seconds(raw.get("start_interval", "5s"), f"{place}: start_interval")
    return HealthCheck(
        test=test[1:],
        interval_seconds=seconds(raw.get("interval", "30s"), f"{place}: interval"),
        timeout_seconds=seconds(raw.get("timeout", "30s"), f"{place}: timeout"),
        retries=whole_number(raw.get("retries", 3), f"{place}: retries"),
        start_period_seconds=seconds(raw.get("start_period", "0s"), f"{place}: start_period"),
    )


def read_signal(raw: Any, place: str) -> str:
    name = string(raw, place)
    name = name if name.startswith("SIG") else f"SIG{name}"
    if name not in signal.Signals.__members__:
        refuse(place, f'"{raw}" is not the name of a signal')
    return name


def read_replicas(raw: Any, place: str) -> int:
    raw = mapping(raw, place)
    refuse_unknown_keys(raw, ("replicas",), place)
    return whole_number(raw.get("replicas", 1), f"{place}: replicas")


# --- all services together ------------------------------------------------------------------------


def in_start_order(services: list[Service]) -> list[Service]:
    by_name = {service.name: service for service in services}
    for service in services:
        place = f'{FILE_NAME}: service "{service.name}": depends_on'
        for name, condition in service.depends_on.items():
            if name not in by_name:
                refuse(place, f'there is no service "{name}"; services: {", ".join(by_name)}')
            if condition == "service_healthy" and by_name[name].health is None:
                refuse(place, f'"{name}" has no healthcheck to wait for')
    try:
        order = TopologicalSorter({s.name: s.depends_on for s in services}).static_order()
        return [by_name[name] for name in order]
    except CycleError as error:
        refuse(FILE_NAME, f"services depend on each other: {' -> '.join(error.args[1])}")


def with_stated_ports(services: list[Service]) -> list[Service]:
    """Adds the ports that a service's own command, or another service's address of it, states."""
    texts = [text for service in services for text in texts_of(service)]
    found = []
    for service in services:
        address = re.compile(rf"(?<![\w.-]){re.escape(service.name)}:(\d{{1,5}})\b")
        stated = {int(port) for text in texts for port in address.findall(text)}
        stated |= set(service.ports) | set(port_options(service.command))
        if not stated and service.build is None and service.image is not None:
            default = DEFAULT_PORTS[repository(service.image)]
            stated = set() if default is None else {default}
        if service.replicas > 1 and stated:
            refuse(
                f'{FILE_NAME}: service "{service.name}"',
                f"{service.replicas} replicas cannot all listen on port {min(stated)} of one "
                "machine; without Docker only a service without a port has replicas",
            )
        found.append(replace(service, ports=tuple(sorted(stated))))
    return found


def texts_of(service: Service) -> tuple[str, ...]:
    test = service.health.test if service.health else ()
    return (*service.command, *service.environment.values(), *test)


def port_options(command: tuple[str, ...]) -> Iterator[int]:
    for option, value in zip(command, (*command, "")[1:], strict=True):
        if option == "--port" and value.isdecimal():
            yield int(value)
        elif option.startswith("--port=") and option[7:].isdecimal():
            yield int(option[7:])


def refuse_shared_ports(services: list[Service]) -> None:
    owners: dict[int, str] = {}
    for service in services:
        for port in service.ports:
            if port in owners:
                refuse(
                    FILE_NAME,
                    f'services "{owners[port]}" and "{service.name}" both use port {port}; '
                    "on one machine each needs a port of its own",
                )
            owners[port] = service.name


def repository(image: str) -> str:
    """Strips the tag, the digest and Docker Hub's own names off an image's name."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return (
        (head + slash + last.partition(":")[0]).removeprefix("docker.io/").removeprefix("library/")
    )


# --- values ---------------------------------------------------------------------------------------


def interpolated(value: Any, place: str) -> Any:
    """Replaces `${NAME:-default}` and `$$` in every text below `value`."""
    if isinstance(value, dict):
        return {key: interpolated(item, f"{place}: {key}") for key, item in value.items()}
    if isinstance(value, list):
        return [interpolated(item, place) for item in value]
    if not isinstance(value, str):
        return value

    def substitute(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match[1] is None:
            refuse(place, f'the "$" in "{value}" is not supported: write ${{NAME:-default}} or $$')
        return os.environ.get(match[1]) or match[2]

    return VARIABLE.sub(substitute, value)


def refuse(place: str, reason: str) -> NoReturn:
    raise ComposeError(f"{place}: {reason}")


def refuse_unknown_keys(raw: Mapping[str, Any], supported: tuple[str, ...], place: str) -> None:
    for key in raw:
        if key not in supported:
            raise ComposeError(
                f'{place}: the key "{key}" is not supported without Docker; '
                f"supported keys: {', '.join(supported)}"
            )


def mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ComposeError(f"{place}: must be a mapping (`key: value`)")
    return value


def a_list(value: Any, place: str) -> list[Any]:
    if not isinstance(value, list):
        raise ComposeError(f"{place}: must be a list")
    return value


def string(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise ComposeError(f"{place}: must be a text, not {value!r}; put it in quotes")
    return value


def strings(value: Any, place: str) -> tuple[str, ...]:
    for item in a_list(value, place):
        if not isinstance(item, str):
            raise ComposeError(f"{place}: must hold texts, not {item!r}; put it in quotes")
    return tuple(value)


def texts(value: Any, place: str) -> dict[str, str]:
    for key, item in mapping(value, place).items():
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise ComposeError(f"{place}: {key}: must be a text, not {item!r}; put it in quotes")
    return {key: str(item) for key, item in value.items()}


def whole_number(value: Any, place: str) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ComposeError(f"{place}: must be a whole number from 1, not {value!r}")
    return value


def seconds(value: Any, place: str) -> float:
    if not isinstance(value, str) or not DURATION.fullmatch(value):
        raise ComposeError(f"{place}: must be a duration such as 10s or 1m30s, not {value!r}")
    parts = DURATION_PART.findall(value)
    return float(sum(float(number) * SECONDS_OF_UNIT[unit] for number, unit in parts))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
