"""Starts the publisher of a measurement, and prepares what it publishes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
import numpy as np

from tools.measure.server import Server
from tools.measure.servers import UVICORN_OPTIONS, guarded, run_uvicorn
from tools.run.ports import free_port

from ..device.update import Source, key_of
from ..train.release import predict
from .shelf import NEWEST, Shelf, bad_releases, held_out, make_shelf

HERE = Path(__file__).parents[1]
ROOT = HERE.parents[1]
PACKAGE = ".".join(HERE.relative_to(ROOT).parts)

Counts = dict[str, int]
Targets = dict[str, tuple[str, float]]


class Counted(NamedTuple):
    counts: Counts
    targets: Targets
    control: Counts


class Publisher(NamedTuple):
    """The running publisher, which publishes what it is told to."""

    url: str
    server: Server

    def publish(self, directory: Path, release: int) -> None:
        query: dict[str, str | int] = {"directory": str(directory), "release": release}
        httpx.post(f"{self.url}/measure/publish", params=query, trust_env=False).raise_for_status()

    def sent(self) -> Counts:
        found: Counts = httpx.get(f"{self.url}/measure/sent", trust_env=False).json()
        return found

    def versions(self) -> dict[str, int]:
        found: Counts = httpx.get(f"{self.url}/fleet", trust_env=False).json()["versions"]
        return found


class Stand(NamedTuple):
    """What is published, the rows of the test set, and what Python predicts for them."""

    directory: Path
    shelf: Shelf
    bad: dict[str, tuple[Path, int]]
    rows: np.ndarray
    answers: dict[int, np.ndarray]
    port: int

    @contextmanager
    def publisher(self, release: int = 1) -> Iterator[Publisher]:
        """Runs the publisher, always at the same address."""
        variables = {
            "MODEL_DIRECTORY": str(self.shelf.directory),
            "RELEASE": str(release),
            "SERVED_MODEL": str(self.directory / "served.onnx"),
        }
        with run_uvicorn(
            f"{PACKAGE}.measure.published:app",
            cwd=ROOT,
            env=variables,
            options=[*UVICORN_OPTIONS, *guarded(f"{PACKAGE}.publisher")],
            port=self.port,
        ) as server:
            yield Publisher(server.url, server)

    def source(self) -> Source:
        """Returns where another device gets its updates from."""
        key = key_of(self.shelf.directory / "public_key")
        return Source(f"http://127.0.0.1:{self.port}", uuid4().hex, key, 1_000_000, 60)


def stand_in(directory: Path) -> Stand:
    """Signs the releases, good and bad."""
    shelf = make_shelf(directory / "shelf")
    (directory / "served.onnx").write_bytes(shelf.network)
    rows, _ = held_out()
    first, second = (
        np.asarray(predict(model, rows.tolist())) for model in (shelf.regression, shelf.network)
    )
    answers = {1: first, 2: second, NEWEST: second}
    return Stand(
        directory, shelf, bad_releases(shelf, directory / "bad"), rows, answers, free_port()
    )
