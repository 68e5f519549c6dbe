"""Counts with real processes: calls, digests, versions, and what fails during changes."""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from tools.measure.load import Request, Run, open_loop
from tools.measure.server import Server
from tools.mesh.proxy import fetch
from tools.run.ports import free_port

from ..train.iris import LABELS
from ..train.model import train
from .processes import (
    BODY,
    answers_in,
    run_proxy,
    send,
    urls_of,
    wait_for,
    write,
)

Counts = dict[str, int]

RATE_PER_SECOND, CHUNK_SECONDS = 100, 0.25
# Often, so that 100 changes take seconds.
LOOK_SECONDS = "0.02"
DECIDED = re.compile(r"decided: (\{.*\})")


class Running(NamedTuple):
    """The models, and a proxy that follows a file."""

    models: Mapping[str, Server]
    proxy: Server
    file: Path

    def change(self, **changes: Any) -> str:
        """Changes the file, waits until it is in force, and returns its version."""
        version = write(self.file, **changes)
        wait_for(self.proxy, version)
        return version


@contextmanager
def both(models: Mapping[str, Server], folder: Path) -> Iterator[list[Running]]:
    """Runs the shipped proxy and that of the controls."""
    apps = ("app.main:app", "measure.baselines:app")
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        files = [file_with(folder / f"{number}.yml") for number in range(len(apps))]
        runs = [
            run_proxy(urls_of(models), file, app, LOOK_SECONDS=LOOK_SECONDS)
            for file, app in zip(files, apps, strict=True)
        ]
        proxies = pool.map(stack.enter_context, runs)
        yield [Running(models, proxy, file) for proxy, file in zip(proxies, files, strict=True)]


def file_with(file: Path) -> Path:
    write(file)
    return file


def count_calls_of_off(running: Running, requests: int) -> Counts:
    """Returns how often virginica is called while it is off, and how many answers say so."""
    running.change(virginica={"active": False})
    calls_url = f"{running.models['virginica'].url}/calls"
    before = fetch(calls_url)
    answers = answers_in(send(f"{running.proxy.url}/predict", requests))
    named = [answer for answer in answers if answer["fallback"] == ["virginica"]]
    return {"calls_of_a_model_that_is_off": fetch(calls_url) - before, "fallbacks": len(named)}


def count_unversioned(running: Running) -> Counts:
    """Returns how many decisions are in the log, and how many of them without their version."""
    versions, begin = set(), len(running.proxy.log.read_text("utf-8"))
    for threshold in (0.5, 0.6):
        versions.add(running.change(setosa={"threshold": threshold}))
        send(f"{running.proxy.url}/predict", 50)
    lines = DECIDED.findall(running.proxy.log.read_text("utf-8")[begin:])
    without = [line for line in lines if json.loads(line)["parameters"] not in versions]
    return {"decisions_logged": len(lines), "decisions_without_version": len(without)}


def digests_of(models: Mapping[str, Server]) -> dict[str, str]:
    return {name: fetch(f"{server.url}/metadata")["sha256"] for name, server in models.items()}


def count_changes(running: Running, changes: int) -> Counts:
    """Changes the file under load; returns what fails, and how many models change by that.

    Every second version accepts every row as versicolor, the others none, so an answer shows by
    which version it was decided.
    """
    before = digests_of(running.models)
    expected: dict[str, int] = {}

    def change() -> None:
        for number in range(changes):
            value = number % 2
            bounds = {"threshold": 0.0 if value else 1.0, "timeout_seconds": 50 + number / 100}
            expected[running.change(versicolor=bounds)] = value

    answers = []
    runs = under_load(running.proxy.url, change)
    for answer in (answer for run in runs for answer in answers_in(run)):
        # Those of before the first change are left out.
        if answer["parameters"] in expected:
            decided = {row["versicolor"] for row in answer["prediction"]}
            answers.append((answer["parameters"], decided))
    after = digests_of(running.models)
    return {
        "failed_during_100_changes": failed(runs),
        "answers_of_another_version": sum(
            decided != {expected[version]} for version, decided in answers
        ),
        "versions_seen": len({version for version, _ in answers}),
        "digests_changed": sum(before[name] != after[name] for name in LABELS),
    }


def count_failed_by_a_restart(models: Mapping[str, Server], folder: Path) -> int:
    """Returns how many requests fail if one change restarts the proxy."""
    file, port = file_with(folder / "restarted.yml"), free_port()
    with ExitStack() as stack:
        stack.enter_context(run_proxy(urls_of(models), file, port=port))

        def restart() -> None:
            write(file, versicolor={"threshold": 0.0})
            stack.close()
            stack.enter_context(run_proxy(urls_of(models), file, port=port))

        return failed(under_load(f"http://127.0.0.1:{port}", restart))


def count_retrained(models: Mapping[str, Server]) -> int:
    """Returns how many models change if the answers are changed by training."""
    before = digests_of(models)
    trained = {name: train(name, seed=1)[0] for name in LABELS}
    return sum(before[name] != sha256(content).hexdigest() for name, content in trained.items())


def under_load(url: str, work: Callable[[], None]) -> list[Run]:
    """Sends requests on a schedule while the work is done in a thread."""

    async def load() -> list[Run]:
        task = asyncio.create_task(asyncio.to_thread(work))
        runs = []
        while not task.done():
            run = await open_loop(
                Request(f"{url}/predict", BODY),
                rate_per_second=RATE_PER_SECOND,
                seconds=CHUNK_SECONDS,
                deadline_seconds=60,
                keep_bodies=True,
            )
            runs.append(run)
        await task
        return runs

    return uvloop.run(load())


def failed(runs: list[Run]) -> int:
    return sum(run.sent - run.statuses[200] for run in runs)
