"""Serves models from containers of one image, as Compose does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from tools.measure.docker import docker, wait_until_answered
from tools.measure.server import wait_until
from tools.read.compose import load as load_compose

HERE = Path(__file__).parents[1]
# An image that contains a model, for comparison.
WITH_A_MODEL = "FROM {image}\nUSER root\nCOPY {name}/1 /model\n"
IS_READY = (
    "from urllib.request import ProxyHandler, build_opener; "
    "build_opener(ProxyHandler({})).open('http://127.0.0.1:8001/ready', timeout=2)"
)


class Container(NamedTuple):
    """A running server, the digest of its image, and how long its start took."""

    name: str
    image: str
    start_seconds: float


def image_of(service: str) -> str:
    return str(load_compose(HERE).services[service].image)


@contextmanager
def network_with_store() -> Iterator[str]:
    """Builds the images, and yields a network with the store and no published port."""
    docker("compose", "--project-directory", str(HERE), "build", "--quiet")
    network = f"model-load-{uuid4().hex[:8]}"
    store = f"{network}-store"
    docker("network", "create", network)
    try:
        address = ["--network", network, "--network-alias", "store"]
        docker("run", "--detach", "--name", store, *address, image_of("store"))
        wait_until(lambda: runs(store, IS_READY), "the store")
        yield network
    finally:
        docker("rm", "--force", store)
        docker("network", "rm", network)


def runs(container: str, program: str) -> bool:
    """Tells whether a line of Python runs without an OSError in a container."""
    command = f"try: {program}\nexcept OSError: print('no')"
    return docker("exec", container, "python", "-c", command) != "no"


@contextmanager
def serving(name: str, network: str, row: list[float]) -> Iterator[Container]:
    """Runs the init step for a model, then the server, and waits for its first prediction."""
    api = f"{network}-{name}"
    champion = f"CHAMPION_URL=http://store:8001/{name}/champion.json"
    options = ["--env", champion, "--env", "MODEL_DIRECTORY=/model", "--network", network]
    common = ["--read-only", "--cap-drop", "ALL", *options]
    image = image_of("api")
    try:
        began = time.perf_counter()
        load = [image, "python", "-m", "app.load"]
        docker("run", "--rm", "--volume", f"{api}:/model", *common, *load)
        docker("run", "--detach", "--name", api, "--volume", f"{api}:/model:ro", *common, image)
        wait_until_answered(api, row)
        seconds = time.perf_counter() - began
        yield Container(api, docker("inspect", "--format", "{{.Image}}", api), seconds)
    finally:
        docker("rm", "--force", api)
        docker("volume", "rm", "--force", api)


def digest_with_the_model(name: str, store: Path) -> str:
    """Builds an image that contains a model and returns its digest."""
    text = WITH_A_MODEL.format(image=image_of("api"), name=name)
    tag = f"ml-system-in-actions/model-load-pattern-measure:{uuid4().hex}"
    docker("build", "--quiet", "--tag", tag, "--file", "-", str(store), text=text)
    try:
        return docker("image", "inspect", "--format", "{{.Id}}", tag)
    finally:
        docker("image", "rm", tag)
