"""Runs a step once for the same inputs, and keeps what it made under their digest."""

import ast
import hashlib
import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .parameters import PATTERN, Parameters, parse

RESULT = "result.json"
# What a step goes on from. It is no part of what the step makes, and stays until that is whole.
CHECKPOINT = "checkpoint.pt"
# A line for each epoch, as soon as it is over: the pipeline records it while the step goes on.
EPOCHS = "epochs.jsonl"
LINE_SECONDS = 5
console = Console(soft_wrap=True, highlight=False)


class StepError(Exception):
    """A step cannot be run, or has not made what it should."""


@dataclass(frozen=True)
class Step:
    """What a step depends on besides its own code, with all that this imports."""

    after: tuple[str, ...]
    parameters: tuple[str, ...]
    packages: tuple[str, ...]
    # The files that are kept with its run.
    artifacts: tuple[str, ...] = ()
    # Code that it does not import but starts.
    starts: str = ""


# In the order in which they run.
STEPS = {
    "preprocess": Step((), ("data", "images", "seed", "archive_md5"), ("numpy",)),
    "fit": Step(
        ("preprocess",),
        ("net", "epochs", "batch_size", "learning_rate", "seed", "threads", "device"),
        ("numpy", "torch"),
    ),
    "build": Step(
        ("preprocess", "fit"),
        ("data", "images", "net", "epochs", "batch_size", "learning_rate", "seed"),
        ("numpy", "onnx"),
        artifacts=("model.onnx", "metadata.json"),
    ),
    "evaluate": Step(
        ("preprocess", "fit", "build"),
        ("served_by",),
        ("fastapi", "onnxruntime"),
        artifacts=("scores.json", "per_image.csv", "server.log"),
        starts="app",
    ),
}
Inputs = Mapping[str, Path]
# In the run of the step, numbers are metrics and texts are parameters.
Found = dict[str, float | str]
Work = Callable[[Parameters, Inputs, Path], Found]


def directory_of(name: str, parameters: Parameters) -> Path:
    """Names the directory of what a step makes of these inputs, whether it is there or not.

    Raises:
        StepError: what an earlier step makes of them is not there.
    """
    step = STEPS[name]
    inputs = {
        "after": {before: result_of(before, parameters)["sha256"] for before in step.after},
        "parameters": {key: getattr(parameters, key) for key in step.parameters},
        "code": {
            str(path.relative_to(PATTERN)): sha256(path.read_bytes())
            for path in (*sources_of(PATTERN / f"train/{name}.py"), *started_by(step))
        },
        "packages": {package: version(package) for package in step.packages},
    }
    return parameters.steps / f"{name}-{sha256(json.dumps(inputs, sort_keys=True).encode())[:16]}"


def result_of(name: str, parameters: Parameters) -> dict[str, Any]:
    """Returns what a step has said of what it made.

    Raises:
        StepError: it has not been run with these inputs.
    """
    result = finished(directory_of(name, parameters))
    if result is None:
        raise StepError(f"{name} comes before: run python -m train.{name} with the same arguments")
    return result


def finished(directory: Path) -> dict[str, Any] | None:
    """Returns what was said of a directory, None unless all is there as it was made."""
    try:
        result: dict[str, Any] = json.loads((directory / RESULT).read_bytes())
        return result if result["sha256"] == content_digest(directory) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def content_digest(directory: Path) -> str:
    """Returns the digest of the names and contents of the files that a step has made."""
    files = sorted(path for path in directory.iterdir() if path.name not in (RESULT, CHECKPOINT))
    return sha256(json.dumps([(path.name, file_digest(path)) for path in files]).encode())


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sources_of(path: Path) -> list[Path]:
    """Returns a module of this package with all that it imports from the package, sorted."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            for node in ast.walk(ast.parse(source.read_bytes())):
                if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                    waiting.append(source.with_name(f"{node.module}.py"))
    return sorted(found)


def started_by(step: Step) -> list[Path]:
    return sorted((PATTERN / step.starts).glob("*.py")) if step.starts else []


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Keeps others out; the operating system opens it when this process ends, however it does.

    Raises:
        StepError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise StepError(f"another process is at it, wait for its end: {path}") from None
    try:
        yield
    finally:
        held.release()


def end_in_order() -> None:
    """Makes SIGTERM and Ctrl-C end what was started here as well, and the run a failed one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def end(number: int, _: FrameType | None) -> NoReturn:
    # A terminal sends Ctrl-C to a step as well, and then the pipeline sends it SIGTERM: the second
    # signal does not interrupt what the first one has begun.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def run(name: str, description: str | None, work: Work, *, resumes: bool = False) -> None:
    """Is the program of a step: `work` fills a directory, which gets its name when it is whole.

    A step that resumes finds what it left there when it was ended half-way; any other begins with
    an empty directory. What `work` returns is kept beside what it made, for the pipeline to record.
    """
    parameters = parse(f"train.{name}", description)
    end_in_order()
    try:
        inputs = {before: directory_of(before, parameters) for before in STEPS[name].after}
        directory = directory_of(name, parameters)
        partial = partial_of(directory)
        with lock(directory.with_name(f"{directory.name}.lock")):
            if finished(directory) is not None:
                say_done(name, directory)
                return
            if not resumes:
                shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(exist_ok=True)
            began = time.perf_counter()
            found = work(parameters, inputs, partial)
            seconds = time.perf_counter() - began
            digest = content_digest(partial)
            keep(partial, directory, {"sha256": digest, "seconds": seconds, "found": found})
            console.print(f"{name}: done in {seconds:.1f} s", shown(found), f"({directory.name})")
    except StepError as error:
        sys.exit(f"error: {name}: {error}")


def partial_of(directory: Path) -> Path:
    """Names the directory that a step fills."""
    return directory.with_name(f"{directory.name}.partial")


def keep(partial: Path, directory: Path, result: dict[str, Any]) -> None:
    """Gives a whole directory its name; what is there under that name was found to be damaged."""
    (partial / RESULT).write_text(json.dumps(result, indent=2))
    shutil.rmtree(directory, ignore_errors=True)
    partial.replace(directory)
    (directory / CHECKPOINT).unlink(missing_ok=True)


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not isinstance(value, str)}


def shown(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers(found).items())


def say_done(name: str, directory: Path) -> None:
    console.print(f"{name}: not run again, nothing has changed ({directory.name})")


@contextmanager
def bar() -> Iterator[Progress]:
    """Yields a progress bar that is gone when all is done; without a terminal it is a few lines."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    lines = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=lines) as progress:
        ended = threading.Event()
        if lines:
            threading.Thread(target=print_lines, args=(progress, ended), daemon=True).start()
        try:
            yield progress
        finally:
            ended.set()


def print_lines(progress: Progress, ended: threading.Event) -> None:
    """Says every few seconds how far it is, by bytes where nobody knows how many there will be."""
    while not ended.wait(LINE_SECONDS):
        for task in progress.tasks:
            far = f"{task.percentage:.0f} %" if task.total else f"{task.completed / 1e6:.0f} MB"
            console.print(f"{task.description}: {far}")
