"""Turns a service of `docker-compose.yml` into the command that runs it on this machine.

Service names become 127.0.0.1, container ports and paths become local ones, and an image becomes
its server program. Nothing else changes.
"""

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tools.read.compose import FILE_NAME, Compose, ComposeError, Filled, Mount, Service
from tools.read.dockerfile import stage_of
from tools.read.images import IMAGES, Image, repository
from tools.read.patterns import canonical
from tools.read.proxies import proxied
from tools.read.strict_yaml import documents_of
from tools.run.binaries import find

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104
LOCAL_HOSTS = (ANY_ADDRESS, LOOPBACK, "localhost")
# A bare service name could mean anything, but in these variables and options it is a host name.
HOST_VARIABLE = re.compile(r"(?:.*_)?(?:HOST|HOSTNAME|ADDRESS|ADDR|SERVER)")
HOST_OPTION = re.compile(r"-h|--(?:[a-z-]+-)?(?:host|hostname|address|server)")
# The same for a number that is a port in the file.
PORT_VARIABLE = re.compile(r"(?:.*_)?PORT")
PORT_OPTION = re.compile(r"-p|--(?:[a-z-]+-)?port")

# No other variables of the user reach a process, so that they cannot change its behaviour.
INHERITED_VARIABLES = ("HOME", "LANG", "TMPDIR")

CONFIG_SUFFIXES = (".yaml", ".yml")

UNMOVED: Mapping[int, int] = {}


@dataclass(frozen=True)
class Launch:
    """Everything needed to run a service on this machine."""

    service: Service
    command: tuple[str, ...]
    environment: Mapping[str, str]
    directory: Path
    health_command: tuple[str, ...]


def state_dir(pattern_dir: Path) -> Path:
    return canonical(pattern_dir) / ".local"


def temporary_dir(pattern_dir: Path, purpose: str) -> Path:
    """Returns a folder for this user and pattern under the short system temporary path."""
    digest = sha256(str(canonical(pattern_dir)).encode()).hexdigest()[:12]
    return temporary_root(pattern_dir) / f"local-{os.getuid()}-{digest}-{purpose}"


def temporary_root(pattern_dir: Path) -> Path:
    """Returns the temporary path of the first `up`, because TMPDIR may differ between shells."""
    with suppress(FileNotFoundError):
        recorded = Path(temporary_file(pattern_dir).read_text(encoding="utf-8"))
        if recorded.is_dir():
            return recorded
    return Path(tempfile.gettempdir())


def temporary_file(pattern_dir: Path) -> Path:
    return state_dir(pattern_dir) / "temporary"


def launch_of(compose: Compose, service: Service, ports: Mapping[int, int] = UNMOVED) -> Launch:
    """Returns how to run a service; `ports` maps ports in the file to those on this machine."""
    program = None if service.build else find(service.image or "")
    paths = host_paths(compose, service)
    if program:
        write_configs(compose, service, paths, ports)

    names = tuple(compose.services)
    rewrite = rewriter(names, paths, ports)
    environment = base_environment(compose, service, program)
    for name, value in {**image_variables(compose, service), **service.environment}.items():
        if value in names and HOST_VARIABLE.fullmatch(name):
            environment[name] = LOOPBACK
        elif value.isdecimal() and PORT_VARIABLE.fullmatch(name):
            environment[name] = moved(value, ports)
        else:
            environment[name] = rewrite(value)
    command = image_command(service, program, ports) if program else service.command
    command = rewritten_arguments(command, names, rewrite, ports)
    directory = compose.directory_of(service)
    if program:
        known = image_of(service)
        directory = paths.get(known.data_folder or "") or scratch_dir(compose, service)
        if program.name == "postgres":
            environment |= postgres_environment(service, directory, ports)
            init_dir = paths.get("/docker-entrypoint-initdb.d", Path(os.devnull))
            entrypoint = Path(__file__).with_name("postgres.py")
            command = (sys.executable, str(entrypoint), str(init_dir), str(program), *command[1:])
        elif command[0] == program.name:
            command = (str(program), *command[1:])
    health = service.health.test if service.health else ()
    if program and health:
        health = (health[0], *port_option(service, health, ports), *health[1:])
    health = rewritten_arguments(health, names, rewrite, ports)
    return Launch(service, command, environment, directory, health)


def base_environment(compose: Compose, service: Service, program: Path | None) -> dict[str, str]:
    folders = [Path(sys.executable).parent, os.environ.get("PATH", os.defpath)]
    if program:
        folders.insert(0, program.parent)
    environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    environment |= proxied(os.environ)
    environment["PATH"] = os.pathsep.join(map(str, folders))
    environment["VIRTUAL_ENV"] = sys.prefix
    if not program:
        environment["PYTHONUNBUFFERED"] = "1"
    return environment


def image_variables(compose: Compose, service: Service) -> dict[str, str]:
    stage = stage_of(compose.pattern_dir, service.build) if service.build else None
    return stage.variables() if stage else {}


# --- images ---------------------------------------------------------------------------------------


def image_of(service: Service) -> Image:
    return IMAGES[repository(service.image or "")]


def image_command(service: Service, program: Path, ports: Mapping[int, int]) -> tuple[str, ...]:
    """Mimics the image's entrypoint and binds the server to this machine."""
    known = image_of(service)
    command = service.command or known.command
    if command[0].startswith("-") or command[0].endswith(".conf"):
        command = (program.name, *command)
    given = {word.partition("=")[0] for word in command}
    for option in known.options:
        if option[0].partition("=")[0] not in given:
            command = (*command, *option)
    return (*command, *port_option(service, command, ports))


def port_option(
    service: Service, command: tuple[str, ...], ports: Mapping[int, int]
) -> tuple[str, ...]:
    """Returns what names a port to a program that would use the default, which has moved."""
    known = image_of(service)
    option = known.port_options.get(command[0])
    if not option or option in command or known.port is None:
        return ()
    return (option, str(known.port)) if ports.get(known.port, known.port) != known.port else ()


def postgres_environment(
    service: Service, data_dir: Path, ports: Mapping[int, int]
) -> dict[str, str]:
    """Lets `pg_isready` and `psql` connect in a health check as they do in the container."""
    environment = service.environment
    user = environment.get("POSTGRES_USER", "postgres")
    return {
        "PGHOST": LOOPBACK,
        "PGPORT": moved(str(service.ports[0]), ports),
        "PGDATA": str(data_dir),
        "PGPASSWORD": environment.get("POSTGRES_PASSWORD", ""),
        "POSTGRES_USER": user,
        "POSTGRES_DB": environment.get("POSTGRES_DB", user),
    }


# --- paths ----------------------------------------------------------------------------------------


def host_paths(compose: Compose, service: Service) -> dict[str, Path]:
    """Maps each mounted container path to its path on this machine."""
    paths = {mount.target: mount_source(compose, service, mount) for mount in service.mounts}
    paths |= tmpfs_paths(compose, service)
    data_folder = None if service.build else image_of(service).data_folder
    if data_folder and data_folder not in paths:
        # The volume may be mounted at a parent folder.
        parents = [t for t in paths if data_folder.startswith(f"{t}/")]
        inside = paths[parents[0]] / Path(data_folder).name if parents else None
        paths[data_folder] = inside or scratch_dir(compose, service)
    return paths


def tmpfs_paths(compose: Compose, service: Service) -> dict[str, Path]:
    """Maps each path of a tmpfs to a folder of this user and clone."""
    targets = [str(PurePosixPath(each.partition(":")[0])) for each in service.tmpfs]
    return {target: tmpfs_dir(compose, service) / target.strip("/") for target in targets}


def tmpfs_dir(compose: Compose, service: Service) -> Path:
    # A command may name the path to a shell, so it must need no quotes, unlike that of the clone.
    # `make_folders` rejects a folder of another user.
    folder = temporary_dir(compose.pattern_dir, f"tmpfs-{service.name}")
    if shlex.quote(str(folder)) != str(folder):
        return Path("/tmp", folder.name)  # noqa: S108
    return folder


def mount_source(compose: Compose, service: Service, mount: Mount) -> Path:
    if not mount.named:
        return compose.pattern_dir / mount.source
    return reachable(compose, service, "volumes") / mount.source


def scratch_dir(compose: Compose, service: Service) -> Path:
    """Returns the folder for data without a volume, which the next `up` deletes."""
    return reachable(compose, service, "scratch") / service.name


def reachable(compose: Compose, service: Service, purpose: str) -> Path:
    folder = state_dir(compose.pattern_dir) / purpose
    needs_nobody = not service.build and image_of(service).program == "postgres"
    if needs_nobody and os.geteuid() == 0 and not open_to_nobody(folder):
        return temporary_dir(compose.pattern_dir, purpose)
    return folder


def open_to_nobody(folder: Path) -> bool:
    """Tells whether an unprivileged user can access a folder through all of its parents."""
    existing = [parent for parent in (folder, *folder.parents) if parent.exists()]
    return all(parent.stat().st_mode & 0o001 for parent in existing)


# --- texts ----------------------------------------------------------------------------------------


def rewriter(
    names: tuple[str, ...], paths: Mapping[str, Path], ports: Mapping[int, int] = UNMOVED
) -> Callable[[str], str]:
    """Returns the function that rewrites addresses and mounted paths inside a text."""
    any_name = one_of(names)
    # In one pass, so that nothing is rewritten twice.
    local = re.compile(
        # A service name counts as an address before a port or as the host of a URL.
        rf"(?:(?P<tcp>/dev/tcp/)|(?<![\w.-]))(?P<host>{any_name}|{one_of(LOCAL_HOSTS)})"
        r"(?P<separator>(?(tcp)/|:))(?P<port>\d{1,5})\b"
        rf"|(?:(?<=//)|(?<=@))(?:{any_name})(?=/|$)"
        rf"|(?<![\d.]){re.escape(ANY_ADDRESS)}(?![\d.])"
        rf"|(?<![\w.-])(?P<path>{one_of(paths)})(?![\w.-])"
    )

    def rewrite(text: str) -> str:
        from_shell = text.from_shell if isinstance(text, Filled) else ()

        def rewritten(match: re.Match[str]) -> str:
            if match["port"]:
                host = LOOPBACK if match["host"] in (*names, ANY_ADDRESS) else match["host"]
                return (
                    f"{match['tcp'] or ''}{host}{match['separator']}{moved(match['port'], ports)}"
                )
            if not match["path"]:
                return LOOPBACK
            # The shell names paths of this machine, which may begin like one of the container.
            is_of_this_machine = any(
                match.start() < part.stop and part.start < match.end() for part in from_shell
            )
            return match[0] if is_of_this_machine else str(paths[match[0]])

        return local.sub(rewritten, text)

    return rewrite


def one_of(texts: Iterable[str]) -> str:
    """Returns the expression that matches one of the texts, and nothing if there are none."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def moved(port: str, ports: Mapping[int, int]) -> str:
    return str(ports.get(int(port), port))


def rewritten_arguments(
    arguments: tuple[str, ...],
    names: tuple[str, ...],
    rewrite: Callable[[str], str],
    ports: Mapping[int, int] = UNMOVED,
) -> tuple[str, ...]:
    rewritten = []
    for option, argument in zip(("", *arguments), arguments, strict=False):
        name, equals, value = argument.partition("=")
        if argument in names and HOST_OPTION.fullmatch(option):
            rewritten.append(LOOPBACK)
        elif argument.isdecimal() and PORT_OPTION.fullmatch(option):
            rewritten.append(moved(argument, ports))
        elif equals and value in names and HOST_OPTION.fullmatch(name):
            rewritten.append(f"{name}={LOOPBACK}")
        elif equals and value.isdecimal() and PORT_OPTION.fullmatch(name):
            rewritten.append(f"{name}={moved(value, ports)}")
        else:
            rewritten.append(rewrite(argument))
    return tuple(rewritten)


def addressed_without_port(compose: Compose) -> set[str]:
    """Names the services whose port cannot move, because another one relies on the default."""
    found: set[str] = set()
    url = re.compile(rf"(?:(?<=//)|(?<=@))({one_of(compose.services)})(?=/|$)")
    for service in compose.services.values():
        words = [*service.command, *(service.health.test if service.health else ())]
        pairs = [*service.environment.items(), *pairwise(["", *words])]
        pairs += [(name, value) for name, _, value in (word.partition("=") for word in words)]
        bare: set[str] = set()
        for name, value in pairs:
            is_host = HOST_VARIABLE.fullmatch(name) or HOST_OPTION.fullmatch(name)
            bare |= {value} if is_host and value in compose.services else {*url.findall(value)}
        told = {value for _, value in pairs}
        found |= {name for name in bare if not told & {*map(str, compose.services[name].ports)}}
    return found


# --- configuration files of a server --------------------------------------------------------------


def write_configs(
    compose: Compose, service: Service, paths: dict[str, Path], ports: Mapping[int, int]
) -> None:
    """Writes rewritten copies of mounted YAML files under `.local` and points `paths` to them."""
    known, sources = image_of(service), {}
    for target in [mount.target for mount in service.mounts if not mount.named]:
        source = paths[target]
        # The first `up` creates the folder of the data.
        if known.data_folder and PurePosixPath(known.data_folder).is_relative_to(target):
            continue
        if source.is_dir() and known.configured_by_files:
            raise ComposeError(
                f'{FILE_NAME}: service "{service.name}": volumes: mount the files of {source.name} '
                "one by one: without Docker the addresses in them are rewritten"
            )
        if source.suffix in CONFIG_SUFFIXES:
            sources[target] = source
    folder = state_dir(compose.pattern_dir) / "config" / service.name
    # One of these files may name another, whose copy it then has to name.
    paths.update({target: folder / source.name for target, source in sources.items()})
    names = tuple(compose.services)
    rewrite = rewriter(names, paths, ports)
    for target, source in sources.items():
        try:
            documents = documents_of(source.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ComposeError(f"{source} does not exist; {service.name} mounts it") from None
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise ComposeError(f"{source} is not valid YAML: {problem}") from None
        documents = [rewritten_config(item, names, rewrite, ports) for item in documents]
        folder.mkdir(parents=True, exist_ok=True)
        paths[target].write_text(
            yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def rewritten_config(
    value: Any,
    names: tuple[str, ...],
    rewrite: Callable[[str], str],
    ports: Mapping[int, int] = UNMOVED,
) -> Any:
    if isinstance(value, dict):
        rewritten = {
            key: rewritten_config(item, names, rewrite, ports) for key, item in value.items()
        }
        if value.get("address") in names:
            rewritten["address"] = LOOPBACK
        if rewritten.get("address") == LOOPBACK and "port_value" in value:
            rewritten["port_value"] = ports.get(value["port_value"], value["port_value"])
        return rewritten
    if isinstance(value, list):
        return [rewritten_config(item, names, rewrite, ports) for item in value]
    return rewrite(value) if isinstance(value, str) else value
