"""Reads a pattern's `docker-compose.yml` and rejects what would run differently without Docker.

This is the only reader of Compose files. `load` returns the services in start order. Anything
outside the supported subset of Compose raises a `ComposeError` that names the file, the service and
the key, so no setting is silently ignored.

Keys that begin with `x-` declare exceptions to rules of the repository, with a reason.
"""

import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WrapValidator,
    model_validator,
)

from tools.read.command import option
from tools.read.images import IMAGES, repository
from tools.read.patterns import canonical
from tools.read.profiles import active_profiles
from tools.read.strict_yaml import documents_of

FILE_NAME = "docker-compose.yml"

VARIABLE = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*):([-+])([^${}]*)\}|\$")
SERVICE_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]*")
PUBLISHED_PORT = re.compile(r"127\.0\.0\.1:(\d{1,5}):(\d{1,5})")
DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:us|ms|s|m|h))+")
DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h)")
SECONDS_OF_UNIT = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
MEMORY = re.compile(r"(\d+(?:\.\d+)?)([bkmg])b?")

Condition = Literal["service_started", "service_healthy", "service_completed_successfully"]


class ComposeError(Exception):
    """Part of a Compose file does not run without Docker; the message says what to write."""


# --- values ---------------------------------------------------------------------------------------


class Filled(str):
    """A text of the file whose variables are filled in, which knows what came from the shell."""

    from_shell: tuple[range, ...] = ()


def keep_filled(value: Any, check: Callable[[Any], str]) -> str:
    # pydantic would make it a plain text.
    return value if isinstance(value, Filled) else check(value)


def as_list(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError('must be a list, as in ["one", "two"]')
    return tuple(value)


def as_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be text, not {value!r}; put it in quotes")
    return str(value)


def as_whole_number(value: Any) -> int:
    # An interpolated variable is text.
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"must be a whole number of at least 1, not {value!r}")
    return value


def as_seconds(value: Any) -> float:
    if not isinstance(value, str) or not DURATION.fullmatch(value):
        raise ValueError(f"must be a duration such as 10s or 1m30s, not {value!r}")
    parts = DURATION_PART.findall(value)
    return float(sum(float(number) * SECONDS_OF_UNIT[unit] for number, unit in parts))


def as_bytes(value: Any) -> float:
    found = MEMORY.fullmatch(str(value).lower())
    if not found:
        raise ValueError(f"must be an amount of memory such as 256m or 1g, not {value!r}")
    # Compose treats every unit as a power of 1024, whether written m, M or mb.
    return float(float(found[1]) * 1024.0 ** "bkmg".index(found[2]))


@dataclass(frozen=True)
class PublishedPort:
    """A port of a container, and the port on this machine that leads to it."""

    host: int
    container: int


def as_published_port(value: Any) -> PublishedPort:
    match = PUBLISHED_PORT.fullmatch(str(value))
    numbers = [int(number) for number in match.groups()] if match else [0]
    if not all(0 < number < 65536 for number in numbers):
        raise ValueError(
            f'"{value}" is not supported without Docker; write "127.0.0.1:${{PORT:-8000}}:8000"'
        )
    return PublishedPort(*numbers)


def as_port(value: Any) -> int:
    if not str(value).isdecimal() or not 0 < int(value) < 65536:
        raise ValueError(f"{value!r} is not a port")
    return int(value)


def as_signal(value: Any) -> str:
    name = str(value) if str(value).startswith("SIG") else f"SIG{value}"
    if name not in signal.Signals.__members__:
        raise ValueError(f'"{value}" is not the name of a signal')
    return name


def as_health_command(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) < 2 or value[0] != "CMD":
        raise ValueError('write it as ["CMD", "program", "argument"]')
    return value[1:]


@dataclass(frozen=True)
class Mount:
    """A directory or file of the pattern (`./source`) or a named volume, mounted at `target`."""

    source: str
    target: str
    named: bool
    read_only: bool


def as_mount(value: Any) -> Mount:
    source, _, rest = str(value).partition(":")
    target, _, mode = rest.partition(":")
    if not target.startswith("/") or target == "/" or mode not in ("", "ro", "rw"):
        raise ValueError(f'"{value}": write "./directory:/path[:ro]" or "name:/path[:ro]"')
    named = SERVICE_NAME.fullmatch(source) is not None
    if not named and (not source.startswith("./") or ".." in PurePosixPath(source).parts):
        raise ValueError(f'"{source}" is outside the pattern; a source starts with "./"')
    return Mount(source, str(PurePosixPath(target)), named, mode == "ro")


KeepFilled = WrapValidator(keep_filled)
Text = Annotated[str, BeforeValidator(as_text), KeepFilled]
Texts = Annotated[tuple[Annotated[str, KeepFilled], ...], BeforeValidator(as_list)]
WholeNumber = Annotated[int, BeforeValidator(as_whole_number)]
Seconds = Annotated[float, BeforeValidator(as_seconds)]
Reason = Annotated[str, Field(min_length=1)]


def as_profile(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(value) != 1:
        raise ValueError("write the name of one profile, as in [job]")
    return value


# --- the schema -----------------------------------------------------------------------------------


class Strict(BaseModel):
    """A mapping that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def knows_every_key(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise ValueError("must be a mapping (`key: value`)")
        known = [info.alias or name for name, info in cls.model_fields.items()]
        for key in raw:
            if key not in known:
                raise ValueError(
                    f'the key "{key}" is not supported without Docker; '
                    f"supported keys: {', '.join(known)}"
                )
        return raw


class Build(Strict):
    context: str = "."
    dockerfile: str = "Dockerfile"
    target: str | None = None
    # Without a value, an argument has the value of the variable with its name.
    args: dict[str, Text | None] = {}
    secrets: Texts = ()


class Secret(Strict):
    environment: str


class HealthCheck(Strict):
    test: Annotated[Texts, AfterValidator(as_health_command)]
    interval_seconds: Seconds = Field(30.0, alias="interval")
    timeout_seconds: Seconds = Field(30.0, alias="timeout")
    retries: WholeNumber = 3
    start_period_seconds: Seconds = Field(0.0, alias="start_period")
    # Without Docker the probe runs far more often than this while a service starts.
    start_interval_seconds: Seconds = Field(5.0, alias="start_interval")


class Dependency(Strict):
    condition: Condition = "service_started"


class Deploy(Strict):
    replicas: WholeNumber = 1


class ImageSize(Strict):
    added_mb: WholeNumber
    reason: Reason


class Service(Strict):
    build: Annotated[
        Build | None,
        BeforeValidator(lambda raw: {"context": raw} if isinstance(raw, str) else raw),
    ] = None
    image: str | None = None
    command: Texts = ()
    environment: dict[str, Text] = {}
    published_ports: Annotated[
        tuple[Annotated[PublishedPort, BeforeValidator(as_published_port)], ...],
        BeforeValidator(as_list),
    ] = Field((), alias="ports")
    exposed_ports: Annotated[
        tuple[Annotated[int, BeforeValidator(as_port)], ...], BeforeValidator(as_list)
    ] = Field((), alias="expose")
    mounts: Annotated[
        tuple[Annotated[Mount, BeforeValidator(as_mount)], ...], BeforeValidator(as_list)
    ] = Field((), alias="volumes")
    depends_on: Annotated[
        dict[str, Dependency],
        BeforeValidator(lambda raw: {name: {} for name in raw} if isinstance(raw, list) else raw),
    ] = {}
    health: HealthCheck | None = Field(None, alias="healthcheck")
    restart: Annotated[
        Literal["no", "on-failure", "unless-stopped", "always"],
        # An unquoted `no` is the boolean false in YAML 1.1.
        BeforeValidator(lambda raw: "no" if raw is False else raw),
    ] = "no"
    stop_signal: Annotated[str, BeforeValidator(as_signal)] = "SIGTERM"
    stop_grace_seconds: Seconds = Field(10.0, alias="stop_grace_period")
    deploy: Deploy = Deploy()
    # With a healthcheck, `make up PROFILE=name` starts the service; without one it is a job, which
    # `make run` starts. `make up` alone starts neither.
    profiles: Annotated[Texts, AfterValidator(as_profile)] = ()
    labels: dict[str, Text] = {}
    # These isolate and limit a container; they have no effect without Docker.
    read_only: bool = False
    tmpfs: Texts = ()
    cap_drop: Texts = ()
    security_opt: Texts = ()
    user: Text | None = None
    init: bool = False
    memory_limit_bytes: Annotated[float, BeforeValidator(as_bytes)] | None = Field(
        None, alias="mem_limit"
    )
    cpus: Text | None = None
    pids_limit: WholeNumber | None = None
    # Tests append these to the command of a one-shot service so that it takes seconds.
    quick_arguments: Texts = Field((), alias="x-quick-arguments")
    # Variables read by a program in the image rather than by the pattern's settings.
    program_variables: dict[str, Reason] = Field({}, alias="x-program-variables")
    # Why the server has no /ready.
    without_ready: Reason | None = Field(None, alias="x-without-ready")
    # Why the server starts with no other model than the one it was released with.
    without_other_models: Reason | None = Field(None, alias="x-without-other-models")
    # Why the image may add more to its base image than the usual limit.
    image_size: ImageSize | None = Field(None, alias="x-image-size")

    # `load` sets both, because they depend on the rest of the file.
    _name: str = PrivateAttr("")
    _ports: tuple[int, ...] = PrivateAttr(())

    @property
    def name(self) -> str:
        return self._name

    @property
    def context(self) -> str:
        """The directory that the service is built from, relative to that of the file."""
        return self.build.context if self.build else "."

    @property
    def ports(self) -> tuple[int, ...]:
        """Every port that the file says the service listens on, in its container."""
        return self._ports

    @property
    def replicas(self) -> int:
        return self.deploy.replicas

    @property
    def is_job(self) -> bool:
        return bool(self.profiles) and self.health is None

    @property
    def is_opt_in(self) -> bool:
        return bool(self.profiles) and self.health is not None

    @model_validator(mode="after")
    def runs_without_docker(self) -> Self:
        if self.build is None and self.image is None:
            raise ValueError("needs `build` or `image`")
        if self.build is not None and not self.command:
            raise ValueError("a service that is built needs a `command` to run without Docker")
        if self.build is None and repository(self.image or "") not in IMAGES:
            known = ", ".join(IMAGES)
            raise ValueError(
                f'the image "{self.image}" is not known without Docker; known images: {known}'
            )
        if self.profiles and self.build is None:
            raise ValueError("only a service that is built can have `profiles`")
        if self.is_job and self.restart != "no":
            raise ValueError(
                "a service with `profiles` and no healthcheck ends by itself: remove `restart`"
            )
        if self.is_job and self.replicas > 1:
            raise ValueError("run a service with `profiles` several times: remove `replicas`")
        return self


class File(Strict):
    name: Annotated[str, Field(min_length=1)] | None = None
    services: dict[str, Service]
    volumes: dict[str, None] = {}
    secrets: dict[str, Secret] = {}
    # What the builds of all services share.
    shared_build: Build | None = Field(None, alias="x-build")
    # Why the pattern has no train/.
    without_training: Reason | None = Field(None, alias="x-without-training")
    # Why every service is in a directory of its own, so that the pattern itself has no program.
    services_below: Reason | None = Field(None, alias="x-services-below")


@dataclass(frozen=True)
class Compose:
    path: Path
    name: str
    # In start order: each service comes after its dependencies.
    services: Mapping[str, Service]
    # The environment variable of each secret of a build.
    secrets: Mapping[str, str]
    without_training: str | None
    # The profiles whose services `up` starts as well.
    profiles: frozenset[str]
    services_below: str | None

    @property
    def pattern_dir(self) -> Path:
        return self.path.parent

    def service(self, name: str) -> Service:
        if name not in self.services:
            known = ", ".join(self.services)
            raise ComposeError(f'{FILE_NAME}: there is no service "{name}"; services: {known}')
        return self.services[name]

    def of_up(self) -> dict[str, Service]:
        """Returns the services that `up` starts, in start order."""
        return {
            name: item
            for name, item in self.services.items()
            if not item.profiles or (item.is_opt_in and self.profiles.issuperset(item.profiles))
        }

    def jobs(self) -> list[str]:
        """Names the services that run on demand."""
        return [name for name, service in self.services.items() if service.is_job]

    def one_shots(self) -> set[str]:
        """Names the services that another service waits for to complete successfully."""
        return {
            name
            for service in self.services.values()
            for name, dependency in service.depends_on.items()
            if dependency.condition == "service_completed_successfully"
        }

    def published(self) -> dict[int, int]:
        """Returns the port on this machine of each published port of what `up` starts."""
        services = self.of_up().values()
        return {port.container: port.host for item in services for port in item.published_ports}

    def built(self) -> list[Service]:
        return [service for service in self.services.values() if service.build]

    def directory_of(self, service: Service) -> Path:
        """Returns where a service is built, and where it runs without Docker."""
        return self.pattern_dir / service.context

    def directories(self) -> list[Path]:
        """Returns the directories that services are built from, that of the file first."""
        below = [self.directory_of(service) for service in self.built()]
        return list(dict.fromkeys([self.pattern_dir, *below]))


def load(pattern_dir: Path, variables: Mapping[str, str] = os.environ) -> Compose:
    """Reads the Compose file of a pattern, filling in `${NAME:-default}` from `variables`.

    `COMPOSE_PROFILES` in `variables` names the profiles that are active, as for Compose.

    Raises:
        ComposeError: the file is missing, or part of it does not run without Docker.
    """
    path = canonical(pattern_dir) / FILE_NAME
    if path.with_name(".env").exists():
        raise ComposeError(f"{path.with_name('.env')} is read by Docker only; use the environment")
    document = interpolated(document_of(path), (), variables)
    try:
        file = File.model_validate(document)
    except ValidationError as error:
        raise ComposeError(message_of(error)) from None
    if all(service.profiles for service in file.services.values()):
        refuse(FILE_NAME, "there are no services that `up` starts")
    for name, service in file.services.items():
        service._name = name
        refuse_unknown_names(service, file)
    services = in_start_order(file.services)
    state_ports(services)
    return Compose(
        path,
        file.name or path.parent.name,
        {service.name: service for service in services},
        {name: secret.environment for name, secret in file.secrets.items()},
        file.without_training,
        frozenset(active_profiles(variables)),
        file.services_below,
    )


def document_of(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ComposeError(f"{path} does not exist; name the directory of a pattern") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ComposeError(f"{path} cannot be read: {error}") from None
    try:
        documents = documents_of(text) or [None]
    except yaml.YAMLError as error:
        raise ComposeError(f"{FILE_NAME}: not valid YAML: {' '.join(str(error).split())}") from None
    if len(documents) > 1:
        refuse(FILE_NAME, "contains several documents; write one")
    return documents[0]


def interpolated(value: Any, keys: tuple[str, ...], variables: Mapping[str, str]) -> Any:
    """Replaces `${NAME:-default}`, `${NAME:+value}` and `$$` in all strings of `value`.

    `keys` is its place.
    """
    if isinstance(value, dict):
        return {
            key: interpolated(item, (*keys, str(key)), variables) for key, item in value.items()
        }
    if isinstance(value, list):
        return [interpolated(item, keys, variables) for item in value]
    if not isinstance(value, str):
        return value

    text, end, from_shell = "", 0, []
    for match in VARIABLE.finditer(value):
        text += value[end : match.start()]
        end = match.end()
        if match[0] == "$$":
            text += "$"
        elif match[1] is None:
            reason = f'the "$" in "{value}" is not supported; write ${{NAME:-default}} or $$'
            refuse(place_of(*keys), reason)
        elif match[2] == "+":
            text += match[3] if variables.get(match[1]) else ""
        elif told := variables.get(match[1]):
            from_shell.append(range(len(text), len(text) + len(told)))
            text += told
        else:
            text += match[3]
    filled = Filled(text + value[end:])
    filled.from_shell = tuple(from_shell)
    return filled


# --- errors ---------------------------------------------------------------------------------------


def message_of(error: ValidationError) -> str:
    """Describes the first error in one line: file, service, key, and what to write."""
    first = error.errors()[0]
    keys = [key for key in first["loc"] if isinstance(key, str) and key != "[key]"]
    given = first["input"]
    reasons = {
        "missing": "it is missing; add it",
        "string_type": f"must be text, not {given!r}; put it in quotes",
        "string_too_short": "must not be empty",
        "bool_type": f"must be true or false, not {given!r}",
        "dict_type": "must be a mapping (`key: value`)",
        "none_required": f"options are not supported without Docker; write nothing, not {given}",
    }
    reason = reasons.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "literal_error":
        reason = f"{given!r} is not one of {first['ctx']['expected']}"
    return f"{place_of(*keys)}: {reason}"


def place_of(*keys: str) -> str:
    """Names a place in the file, as in `docker-compose.yml: service "api": ports`."""
    if keys[:1] == ("services",) and len(keys) > 1:
        keys = (f'service "{keys[1]}"', *keys[2:])
    return ": ".join([FILE_NAME, *keys])


def refuse(place: str, reason: str) -> NoReturn:
    raise ComposeError(f"{place}: {reason}")


# --- all services together ------------------------------------------------------------------------


def refuse_unknown_names(service: Service, file: File) -> None:
    place = f'{FILE_NAME}: service "{service.name}"'
    if not SERVICE_NAME.fullmatch(service.name):
        refuse(place, "a service name may contain only letters, digits, - and _")
    for mount in service.mounts:
        if mount.named and mount.source not in file.volumes:
            reason = f'"{mount.source}" is not declared under the top-level `volumes`'
            refuse(f"{place}: volumes", reason)
    for name in service.build.secrets if service.build else ():
        if name not in file.secrets:
            reason = f'"{name}" is not declared under the top-level `secrets`'
            refuse(f"{place}: build: secrets", reason)
    for name, dependency in service.depends_on.items():
        if name not in file.services:
            reason = f'there is no service "{name}"; services: {", ".join(file.services)}'
            refuse(f"{place}: depends_on", reason)
        if dependency.condition == "service_healthy" and file.services[name].health is None:
            refuse(f"{place}: depends_on", f'"{name}" has no healthcheck to wait for')
        if file.services[name].profiles:
            refuse(f"{place}: depends_on", f'"{name}" has `profiles`, so `up` does not start it')


def in_start_order(services: Mapping[str, Service]) -> list[Service]:
    graph = {name: service.depends_on for name, service in services.items()}
    try:
        return [services[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        refuse(FILE_NAME, f"services depend on each other: {' -> '.join(error.args[1])}")


def state_ports(services: list[Service]) -> None:
    """Collects each service's ports from its keys, its command and other services' addresses."""
    texts = [text for service in services for text in texts_of(service)]
    owners: dict[int, str] = {}
    hosts = Counter(port.host for service in services for port in service.published_ports)
    if twice := [host for host, times in hosts.items() if times > 1]:
        refuse(FILE_NAME, f"port {twice[0]} of this machine is published twice; change one")
    for service in services:
        address = re.compile(rf"(?<![\w.-]){re.escape(service.name)}:(\d{{1,5}})\b")
        stated = {int(port) for text in texts for port in address.findall(text)}
        stated |= {port.container for port in service.published_ports} | {*service.exposed_ports}
        listening = option(service.command, "--port")
        stated |= {int(listening)} if listening.isdecimal() else set()
        if not stated and service.build is None and service.image is not None:
            default = IMAGES[repository(service.image)].port
            stated = set() if default is None else {default}
        if service.replicas > 1 and stated:
            refuse(
                f'{FILE_NAME}: service "{service.name}"',
                f"{service.replicas} replicas cannot all listen on port {min(stated)} of one "
                "machine; without Docker only a service without a port can have replicas",
            )
        if service.is_job and stated:
            refuse(
                f'{FILE_NAME}: service "{service.name}"',
                "a service with `profiles` has no port, because it can run several times at once; "
                "a server needs a healthcheck",
            )
        for port in sorted(stated):
            if port in owners:
                refuse(
                    FILE_NAME,
                    f'services "{owners[port]}" and "{service.name}" both use port {port}; '
                    "on one machine each needs its own port",
                )
            owners[port] = service.name
        service._ports = tuple(sorted(stated))


def texts_of(service: Service) -> tuple[str, ...]:
    test = service.health.test if service.health else ()
    return (*service.command, *service.environment.values(), *test)
