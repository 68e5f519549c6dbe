"""Runs Envoy for a pattern, with the shipped configuration or with changed manifests."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.request import Request, urlopen

import yaml

from tools.measure.server import serve
from tools.mesh import translate as mesh
from tools.mesh.istio import Json
from tools.read.compose import Service, load
from tools.read.images import repository
from tools.run.binaries import find
from tools.run.ports import free_port

ANYWHERE = "0.0.0.0"  # noqa: S104


class Replica(Protocol):
    """A server that is running; what starts and ends it is another matter."""

    url: str


@dataclass
class Proxy:
    """A running Envoy: the URL for callers and the URL of its admin interface."""

    url: str
    admin_url: str

    def stat(self, name: str) -> int:
        """Returns a counter or gauge by its full name, as in `cluster.outbound|8000||api...`."""
        stats = fetch(f"{self.admin_url}/stats?format=json")["stats"]
        return int({stat["name"]: stat["value"] for stat in stats if "name" in stat}[name])

    def uptime_seconds(self) -> int:
        """Returns the whole seconds since the start."""
        info = fetch(f"{self.admin_url}/server_info")
        return int(info["uptime_current_epoch"].removesuffix("s"))


def fetch(url: str, method: str = "GET") -> Any:
    with urlopen(Request(url, method=method), timeout=30) as response:  # noqa: S310
        return json.load(response)


def shipped(pattern: Path) -> Any:
    """Returns the configuration that Compose uses."""
    return yaml.safe_load((pattern / "envoy.yaml").read_text("utf-8"))


def translated(pattern: Path, change: Callable[[Json], object]) -> Any:
    """Returns the configuration translated from the manifests, each changed before.

    A manifest that is emptied is left out.
    """
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory)
        shutil.copytree(pattern / "manifests", copy / "manifests")
        shutil.copy(pattern / "docker-compose.yml", copy)
        for path in (copy / "manifests").glob("*.yml"):
            manifests = list(yaml.safe_load_all(path.read_text("utf-8")))
            for manifest in manifests:
                change(manifest)
            path.write_text(yaml.safe_dump_all(manifests), "utf-8")
        return yaml.safe_load(mesh.translate(copy))


def without(pattern: Path, *parts: str) -> Any:
    """Returns the configuration translated from the manifests without these parts.

    A part is a field of a DestinationRule's `trafficPolicy` or of a VirtualService's `http`.
    """

    def remove(manifest: Json) -> None:
        spec = manifest.get("spec", {})
        for holder in (spec.get("trafficPolicy", {}), *spec.get("http", [])):
            for part in parts:
                holder.pop(part, None)

    return translated(pattern, remove)


def moved(config: Any, ports: Mapping[tuple[str, int], int]) -> Any:
    """Replaces all addresses with 127.0.0.1 and these ports."""
    if isinstance(config, list):
        return [moved(part, ports) for part in config]
    if not isinstance(config, dict):
        return config
    if "port_value" in config:
        port = ports[config["address"], config["port_value"]]
        return {"address": "127.0.0.1", "port_value": port}
    return {name: moved(part, ports) for name, part in config.items()}


def envoy_of(pattern: Path) -> Service:
    """Returns the Compose service that runs Envoy."""
    services = load(pattern).services.values()
    return next(each for each in services if repository(each.image or "") == "envoyproxy/envoy")


@contextmanager
def proxy(
    pattern: Path, config: Any, replicas: Mapping[str, Replica], cpus: set[int] | None = None
) -> Iterator[Proxy]:
    """Starts Envoy in front of running servers, with its options from Compose.

    `config` comes from `shipped` or `without`, `replicas` maps Compose services to the servers that
    replace them, and `cpus` are the cores that Envoy may use.
    """
    envoy, services = envoy_of(pattern), load(pattern).services
    listening = {port: free_port() for port in envoy.ports}
    ports = {(ANYWHERE, port): moved_to for port, moved_to in listening.items()}
    for name, running in replicas.items():
        (port,) = services[name].ports
        ports[name, port] = int(running.url.rpartition(":")[2])
    (port,) = (port for port in envoy.ports if port != mesh.ADMIN_PORT)
    admin_url = f"http://127.0.0.1:{listening[mesh.ADMIN_PORT]}"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "envoy.yaml"
        path.write_text(yaml.safe_dump(moved(config, ports)), "utf-8")
        options = [str(path) if word.startswith("/") else word for word in envoy.command]
        with serve(
            [str(find(envoy.image or "")), *options, "--disable-hot-restart"],
            cwd=pattern,
            ready_url=f"{admin_url}/ready",
            port=listening[port],
            cpus=cpus,
        ):
            yield Proxy(f"http://127.0.0.1:{listening[port]}", admin_url)
