"""Runs a step once per set of inputs, and keeps its result under their digest."""

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
# A step resumes from it. It is not part of the result and is deleted once that is complete.
CHECKPOINT = "checkpoint.pt"
# One line per finished epoch, which the pipeline records while the step continues.
EPOCHS = "epochs.jsonl"
LINE_SECONDS = 5
console = Console(soft_wrap=True, highlight=False)


class StepError(Exception):
    """A step cannot be run, or has failed."""


@dataclass(frozen=True)
class Step:
    """What a step depends on besides its code and the modules that this imports."""

    after: tuple[str, ...]
    parameters: tuple[str, ...]
    packages: tuple[str, ...]
    # The files to log with its run.
    artifacts: tuple[str, ...] = ()
    # A package that it starts but does not import.
    starts: str = ""


# In the order in which they run.
STEPS = {
    "preprocess": Step((), ("data", "images", "seed", "archive_sha256"), ("numpy",)),
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
# Numbers are logged as metrics, strings as parameters.
Found = dict[str, float | str]
Work = Callable[[Parameters, Inputs, Path], Found]


def directory_of(name: str, parameters: Parameters) -> Path:
    """Returns the directory for the result of a step with these inputs; it need not exist.

    Raises:
        StepError: the result of an earlier step is missing.
    """
    step = STEPS[name]
    started = sorted((PATTERN / step.starts).glob("*.py")) if step.starts else []
    inputs = {
        "after": {before: result_of(before, parameters)["sha256"] for before in step.after},
        "parameters": {key: getattr(parameters, key) for key in step.parameters},
        "code": {
            str(path.relative_to(PATTERN)): sha256(path.read_bytes())
            for path in (*sources_of(PATTERN / f"train/{name}.py"), *started)
        },
        "packages": {package: version(package) for package in step.packages},
    }
    return parameters.steps / f"{name}-{sha256(json.dumps(inputs, sort_keys=True).encode())[:16]}"


def result_of(name: str, parameters: Parameters) -> dict[str, Any]:
    """Returns the result file of a step.

    Raises:
        StepError: the step has not been run with these inputs.
    """
    result = finished(directory_of(name, parameters))
    if result is None:
        raise StepError(f"{name} is missing: run python -m train.{name} with the same arguments")
    return result


def finished(directory: Path) -> dict[str, Any] | None:
    """Returns the result file of a directory, or None if anything is missing or has changed."""
    try:
        result: dict[str, Any] = json.loads((directory / RESULT).read_bytes())
        return result if result["sha256"] == content_digest(directory) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def content_digest(directory: Path) -> str:
    """Returns the digest of the names and contents of all files that a step wrote."""
    files = sorted(path for path in directory.iterdir() if path.name not in (RESULT, CHECKPOINT))
    return sha256(json.dumps([(path.name, file_digest(path)) for path in files]).encode())


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sources_of(path: Path) -> list[Path]:
    """Returns a module and all modules that it imports from this package, sorted."""
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


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Locks a file; the operating system releases the lock when this process ends or is killed.

    Raises:
        StepError: another process holds the lock, or the directory cannot be written.
    """
    held = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise StepError(f"another process holds {path}, wait until it ends") from None
    except OSError as error:
        reason = f"cannot write into {path.parent}: {error.strerror}"
        raise StepError(f"{reason}; make it writable, or choose another with --steps") from error
    try:
        yield
    finally:
        held.release()


def end_in_order() -> None:
    """Makes SIGTERM and Ctrl-C also end child processes and fail the run."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def end(number: int, _: FrameType | None) -> NoReturn:
    # Ctrl-C in a terminal also reaches the step, and then the pipeline sends it SIGTERM: ignore the
    # second signal, so it does not interrupt the cleanup.
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def run(name: str, description: str | None, work: Work, *, resumes: bool = False) -> None:
    """Runs the program of a step: `work` fills a partial directory, which is renamed when complete.

    If `resumes` is set, the step finds the files of an interrupted run there; otherwise it starts
    with an empty directory. The return value of `work` is stored for the pipeline to record.
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
            result = {"sha256": digest, "seconds": seconds, "found": found}
            (partial / RESULT).write_text(json.dumps(result, indent=2))
            # A directory of that name is damaged, or `finished` would have found it.
            shutil.rmtree(directory, ignore_errors=True)
            partial.replace(directory)
            (directory / CHECKPOINT).unlink(missing_ok=True)
            console.print(f"{name}: done in {seconds:.1f} s", shown(found), f"({directory.name})")
    except StepError as error:
        sys.exit(f"error: {name}: {error}")


def partial_of(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.partial")


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not isinstance(value, str)}


def shown(found: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers(found).items())


def say_done(name: str, directory: Path) -> None:
    console.print(f"{name}: not run again, nothing has changed ({directory.name})")


@contextmanager
def bar() -> Iterator[Progress]:
    """Yields a progress bar; without a terminal, it prints a line every few seconds instead."""
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
    """Prints the progress every few seconds: in percent, or in bytes if the total is unknown."""
    while not ended.wait(LINE_SECONDS):
        for task in progress.tasks:
            far = f"{task.percentage:.0f} %" if task.total else f"{task.completed / 1e6:.0f} MB"
            console.print(f"{task.description}: {far}")
