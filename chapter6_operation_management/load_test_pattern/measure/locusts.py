"""Runs Locust with the shipped locustfile, and reads what it found."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from typing import NamedTuple

HERE = Path(__file__).parents[1]
# Of a run, which is killed then.
DEADLINE_SECONDS = 240
STEP = re.compile(
    r"step \d+ of \d+, (\S+)/s: p50 (\S+) ms, p99 (\S+) ms, errors (\S+)%, "
    r"sent late by (\S+) ms: (.+)"
)
SHIPPED = "load/locustfile.py"
# An option that also writes every request to a file, which costs time.
RECORDED = ("-f", f"{SHIPPED},measure/record.py")


class Step(NamedTuple):
    """What Locust says about a step."""

    rate: float
    p50_ms: float
    p99_ms: float
    errors_percent: float
    lag_p99_ms: float
    verdict: str


class Recorded(NamedTuple):
    """When a request was due, or sent, and when it ended, in seconds since the epoch."""

    name: str
    due: float
    ended: float


@dataclass
class Locust:
    """A run of Locust; what it found is there after the end of the block that runs it."""

    record: Path
    output: str = ""
    exit_code: int = -1
    cpu_seconds: float = 0.0
    # By the name of their entry in Locust's table.
    requests: dict[str, int] = field(default_factory=dict)
    recorded: list[Recorded] = field(default_factory=list)

    @property
    def steps(self) -> list[Step]:
        return [
            Step._make([*map(float, numbers), verdict])
            for *numbers, verdict in STEP.findall(self.output)
        ]

    @property
    def held(self) -> list[Step]:
        return [step for step in self.steps if step.verdict == "held"]

    def has_begun(self) -> bool:
        return self.record.exists() and self.record.stat().st_size > 0


@contextmanager
def locust(url: str, /, *options: str, **settings: float) -> Iterator[Locust]:
    """Runs Locust until it ends by itself, which the end of the block waits for."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        run = Locust(folder / "record")
        program = str(Path(sys.executable).with_name("locust"))
        command = [program, "-f", SHIPPED, "--headless", "--only-summary", "--host", url, *options]
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [*command, "--json-file", str(folder / "summary")],
                cwd=HERE,
                env={
                    **os.environ,
                    **{key.upper(): str(value) for key, value in settings.items()},
                    "RECORD": str(run.record),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        watchdog = Timer(DEADLINE_SECONDS, process.kill)
        watchdog.start()
        try:
            yield run
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            watchdog.cancel()
        process.returncode = run.exit_code = os.waitstatus_to_exitcode(status)
        run.cpu_seconds = used.ru_utime + used.ru_stime
        run.output = (folder / "output").read_text("utf-8")
        if (summary := folder / "summary.json").exists():
            entries = json.loads(summary.read_bytes())
            run.requests = {entry["name"]: entry["num_requests"] for entry in entries}
        if run.record.exists():
            lines = [line.split("\t") for line in run.record.read_text("utf-8").splitlines()]
            run.recorded = [Recorded(each, float(due), float(end)) for each, due, end in lines]


def ended(url: str, /, *options: str, **settings: float) -> Locust:
    """Runs Locust to its end."""
    with locust(url, *options, **settings) as run:
        pass
    return run
