"""Turns a service of `docker-compose.yml` into the command that runs it on this machine.

Service names become 127.0.0.1, container paths become local paths, and an image becomes its server
program. Nothing else changes.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from tools.read.compose import FILE_NAME, Compose, ComposeError, Mount, Service
from tools.read.dockerfile import stage_of
from tools.read.images import IMAGES, Image, repository
from tools.read.patterns import canonical
from tools.read.proxies import proxied
from tools.read.strict_yaml import documents_of
from tools.run.binaries import find

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = re.compile(r"(?<![\d.])0\.0\.0\.0(?![\d.])")
# A bare service name could mean anything, but in these variables and options it is a host name.
HOST_VARIABLE = re.compile(r"(?:.*_)?(?:HOST|HOSTNAME|ADDRESS|ADDR|SERVER)")
HOST_OPTION = re.compile(r"-h|--(?:[a-z-]+-)?(?:host|hostname|address|server)")

# No other variables of the user reach a process, so that they cannot change its behaviour.
INHERITED_VARIABLES = ("HOME", "LANG", "TMPDIR")

CONFIG_SUFFIXES = (".yaml", ".yml")


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
    return Path(tempfile.gettempdir()) / f"local-{os.getuid()}-{digest}-{purpose}"


def launch_of(compose: Compose, service: Service) -> Launch:
    program = None if service.build else find(service.image or "")
    paths = host_paths(compose, service)
    if program:
        write_configs(compose, service, paths)

    rewrite = rewriter(tuple(compose.services), paths)
    environment = base_environment(compose, service, program)
    for name, value in {**image_variables(compose, service), **service.environment}.items():
        host = value in compose.services and HOST_VARIABLE.fullmatch(name)
        environment[name] = LOOPBACK if host else rewrite(value)
    command = image_command(service, program) if program else service.command
    command = rewritten_arguments(command, tuple(compose.services), rewrite)
    directory = compose.pattern_dir
    if program:
        known = image_of(service)
        directory = paths.get(known.data_folder or "") or scratch_dir(compose, service)
        if program.name == "postgres":
            environment |= postgres_environment(service, directory)
            init_dir = paths.get("/docker-entrypoint-initdb.d", Path(os.devnull))
            entrypoint = Path(__file__).with_name("postgres.py")
            command = (sys.executable, str(entrypoint), str(init_dir), str(program), *command[1:])
        elif command[0] == program.name:
            command = (str(program), *command[1:])
    health = service.health.test if service.health else ()
    health = rewritten_arguments(health, tuple(compose.services), rewrite)
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


def image_command(service: Service, program: Path) -> tuple[str, ...]:
    """Mimics the image's entrypoint and binds the server to this machine."""
    known = image_of(service)
    command = service.command or known.command
    if command[0].startswith("-") or command[0].endswith(".conf"):
        command = (program.name, *command)
    given = {word.partition("=")[0] for word in command}
    for option in known.options:
        if option[0].partition("=")[0] not in given:
            command = (*command, *option)
    return command


def postgres_environment(service: Service, data_dir: Path) -> dict[str, str]:
    """Lets `pg_isready` and `psql` connect in a health check as they do in the container."""
    environment = service.environment
    user = environment.get("POSTGRES_USER", "postgres")
    return {
        "PGHOST": LOOPBACK,
        "PGPORT": str(service.ports[0]),
        "PGDATA": str(data_dir),
        "PGPASSWORD": environment.get("POSTGRES_PASSWORD", ""),
        "POSTGRES_USER": user,
        "POSTGRES_DB": environment.get("POSTGRES_DB", user),
    }


# --- paths ----------------------------------------------------------------------------------------


def host_paths(compose: Compose, service: Service) -> dict[str, Path]:
    """Maps each mounted container path to its path on this machine."""
    paths = {mount.target: mount_source(compose, service, mount) for mount in service.mounts}
    data_folder = None if service.build else image_of(service).data_folder
    if data_folder and data_folder not in paths:
        # The volume may be mounted at a parent folder.
        parents = [t for t in paths if data_folder.startswith(f"{t}/")]
        inside = paths[parents[0]] / Path(data_folder).name if parents else None
        paths[data_folder] = inside or scratch_dir(compose, service)
    return paths


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


def rewriter(names: tuple[str, ...], paths: Mapping[str, Path]) -> Callable[[str], str]:
    """Returns the function that rewrites addresses and mounted paths inside a text."""
    any_name = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    # A service name counts as an address before a port or as the host of a URL.
    address = re.compile(rf"(?<![\w.-])(?:{any_name})(?=:\d)|(?<=//)(?:{any_name})(?=/|$)")
    user_address = re.compile(rf"(?<=@)(?:{any_name})(?=/|$)")
    targets = "|".join(map(re.escape, sorted(paths, key=len, reverse=True)))
    mounted = re.compile(rf"(?<![\w.-])(?:{targets})(?![\w.-])")

    def rewrite(text: str) -> str:
        text = ANY_ADDRESS.sub(LOOPBACK, text)
        text = user_address.sub(LOOPBACK, address.sub(LOOPBACK, text))
        return mounted.sub(lambda match: str(paths[match[0]]), text) if paths else text

    return rewrite


def rewritten_arguments(
    arguments: tuple[str, ...], names: tuple[str, ...], rewrite: Callable[[str], str]
) -> tuple[str, ...]:
    rewritten = []
    for option, argument in zip(("", *arguments), arguments, strict=False):
        name, equals, value = argument.partition("=")
        if argument in names and HOST_OPTION.fullmatch(option):
            rewritten.append(LOOPBACK)
        elif equals and value in names and HOST_OPTION.fullmatch(name):
            rewritten.append(f"{name}={LOOPBACK}")
        else:
            rewritten.append(rewrite(argument))
    return tuple(rewritten)


# --- configuration files of a server --------------------------------------------------------------


def write_configs(compose: Compose, service: Service, paths: dict[str, Path]) -> None:
    """Writes rewritten copies of mounted YAML files under `.local` and points `paths` to them."""
    folder = state_dir(compose.pattern_dir) / "config" / service.name
    for target, source in paths.items():
        if source.is_dir() and image_of(service).configured_by_files:
            raise ComposeError(
                f'{FILE_NAME}: service "{service.name}": volumes: mount the files of {source.name} '
                "one by one: without Docker the addresses in them are rewritten"
            )
        if source.suffix not in CONFIG_SUFFIXES:
            continue
        try:
            documents = documents_of(source.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ComposeError(f"{source} does not exist; {service.name} mounts it") from None
        except yaml.YAMLError as error:
            problem = " ".join(str(error).split())
            raise ComposeError(f"{source} is not valid YAML: {problem}") from None
        rewrite = rewriter(tuple(compose.services), paths)
        documents = [rewritten_config(item, tuple(compose.services), rewrite) for item in documents]
        folder.mkdir(parents=True, exist_ok=True)
        paths[target] = folder / source.name
        paths[target].write_text(
            yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


def rewritten_config(value: Any, names: tuple[str, ...], rewrite: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {
            key: LOOPBACK
            if key == "address" and item in names
            else rewritten_config(item, names, rewrite)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [rewritten_config(item, names, rewrite) for item in value]
    return rewrite(value) if isinstance(value, str) else value
