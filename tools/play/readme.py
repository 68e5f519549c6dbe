"""Plays the README.md of a pattern: runs every command and compares its output with the README.

A ```console block is a session. `$ ` begins a command, `> ` continues it, and the rest is the
expected output, in which `...` stands for anything: for any characters within a line, or for any
lines if alone on a line. If no output is shown, the command may print anything but must succeed.
A command may fail only if the last line shown is make's own `make: *** ... Error N`. To show any
other failure, print the exit code: `$ curl -f ...; echo "exit code $?"`.
All commands run in one bash with pipefail, so variables, `cd` and background jobs carry over.
The first command is `make up` and the last is `make down`, which also runs after a failure.
"""

import argparse
import contextlib
import difflib
import itertools
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console

from tools.read.proxies import direct
from tools.run.interrupts import interrupt_once, uninterrupted

Run = Literal["docker", "local"]

FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<mark>`{3,}|~{3,})[ \t]*(?P<language>[^`\s]*)[^`]*")
# Colours, cursor movements and window titles are removed from the output.
TERMINAL_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
SHELL_WORDS_BEFORE_COMMAND = {"!", "do", "elif", "else", "if", "then", "time", "until", "while"}
INSTALL = {"curl": "curl (apt install curl)"}
CONSOLE = Console()


class Step(NamedTuple):
    """A command, its expected output (None if none is shown), and its line number."""

    command: str
    expected: list[str] | None
    line: int


class ReadmeError(Exception):
    """The README cannot be played."""


class StepError(Exception):
    """A command did not do what the README shows."""


def parse(text: str) -> list[Step]:
    """Returns the commands of all ```console blocks, in order."""
    steps = []
    for block in console_blocks(text):
        starts = [at for at, (_, line) in enumerate(block) if line.startswith("$ ")]
        for number, line in block[: starts[0] if starts else None]:
            if line.strip():
                raise ReadmeError(f"README.md:{number}: output without a command (`$ `) above it")
        for start, end in itertools.pairwise([*starts, len(block)]):
            command, *lines = [line for _, line in block[start:end]]
            continued = list(itertools.takewhile(lambda line: re.match("> |>$", line), lines))
            shown = clean(lines[len(continued) :])
            command = "\n".join(line[2:] for line in [command, *continued])
            steps.append(Step(command, shown or None, block[start][0]))
    return steps


def console_blocks(text: str) -> Iterator[list[tuple[int, str]]]:
    """Yields the numbered lines of each ```console block, without the fence's indentation."""
    fence: re.Match[str] | None = None
    opened = 0
    block: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if fence is None:
            fence, opened, block = FENCE.fullmatch(line), number, []
            if fence is None and "```console" in line:
                raise ReadmeError(f"README.md:{number}: ```console is not alone on its line")
        elif set(line.strip()) == {fence["mark"][0]} and len(line.strip()) >= len(fence["mark"]):
            if fence["language"] == "console":
                yield block
            fence = None
        else:
            block.append((number, line.removeprefix(fence["indent"]).rstrip()))
    if fence is not None:
        raise ReadmeError(f"README.md:{opened}: the code block is never closed")


def clean(lines: list[str]) -> list[str]:
    """Returns the lines as a terminal shows them, without surrounding blank lines."""
    plain = [TERMINAL_CODES.sub("", line).rstrip().rpartition("\r")[2] for line in lines]
    return "\n".join(plain).strip("\n").split("\n") if any(plain) else []


def matches(expected: list[str], actual: list[str]) -> bool:
    return difference(expected, actual) is None


def difference(expected: list[str], actual: list[str]) -> tuple[int, int] | None:
    """Returns the indices of the first expected and actual line that differ; None if none do."""
    # Every number of actual lines that the expected lines so far can match.
    reached = {0}
    for at, line in enumerate(expected):
        if line.strip() == "...":
            reached = set(range(min(reached), len(actual) + 1))
            continue
        pattern = line_pattern(line)
        fitting = {
            end + 1 for end in reached if end < len(actual) and pattern.fullmatch(actual[end])
        }
        if not fitting:
            return at, min(reached)
        reached = fitting
    return None if len(actual) in reached else (len(expected), max(reached))


def line_pattern(line: str) -> re.Pattern[str]:
    first, *others = [re.escape(part) for part in line.split("...")]
    if not others:
        return re.compile(first)
    # Atomic groups: the first match of each part is as good as any later one, and without
    # backtracking a line with many `...` does not take exponential time.
    return re.compile(first + "".join(f"(?>.*?{part})" for part in others[:-1]) + ".*" + others[-1])


def read_steps(readme: Path, environment: dict[str, str]) -> list[Step]:
    """Reads the steps of a README and checks that it can be played."""
    if not readme.is_file():
        raise ReadmeError(f"{readme} does not exist: name the directory of a pattern")
    steps = parse(readme.read_text(encoding="utf-8"))
    if not steps:
        raise ReadmeError(f"{readme}: no ```console block, so there is nothing to play")
    if steps[0].command != "make up":
        raise ReadmeError(f"README.md:{steps[0].line}: the first command must be `make up`")
    if steps[-1].command != "make down":
        raise ReadmeError(f"README.md:{steps[-1].line}: the last command must be `make down`")
    if shutil.which("bash") is None:
        raise ReadmeError("bash is not on PATH: install it")
    words = {word for step in steps for word in command_words(step.command)}
    missing = 'for word; do type -t "$word" >/dev/null || echo "$word"; done'
    check = ["bash", "--noprofile", "-c", missing, "bash", *sorted(words)]
    found = subprocess.run(check, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    if found.stdout:
        names = ", ".join(INSTALL.get(name, name) for name in found.stdout.split())
        raise ReadmeError(f"{readme} needs programs that are not on PATH; install: {names}")
    return steps


def command_words(command: str) -> Iterator[str]:
    """Yields the programs that a command names, leaving out words that may not be programs."""
    lexer = shlex.shlex(command.partition("<<")[0], posix=True, punctuation_chars=True)
    lexer.commenters = ""
    lexer.whitespace_split = True
    begins = True
    # An unbalanced quote is for bash to report.
    with contextlib.suppress(ValueError):
        for word in lexer:
            if set(word) <= set("();|&<>"):
                begins = word in {"(", "|", "||", "&", "&&", ";", "|&"}
            elif begins and not re.match(r"\w+=", word) and word not in SHELL_WORDS_BEFORE_COMMAND:
                if re.fullmatch(r"[A-Za-z][\w.-]*", word):
                    yield word
                begins = False


def session_environment(run: Run | None) -> dict[str, str]:
    """Returns the environment in which the commands run."""
    # Variables of an outer make and FORCE_COLOR would change the output of the commands.
    outer = {"FORCE_COLOR", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS"}
    outer |= set(re.findall(r"(?:^| )(\w+)=", os.environ.get("MAKEFLAGS", ""))) - {"RUN"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    environment |= {"PATH": os.pathsep.join(path), "MAKEFLAGS": "--no-print-directory"}
    # Unbuffered output keeps stdout and stderr in order.
    environment |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "100", "LANGUAGE": "en"}
    environment |= direct(environment)
    if run:
        environment["RUN"] = run
    return environment


@contextlib.contextmanager
def session(directory: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Starts bash in its own process group, and ends the whole group."""
    with subprocess.Popen(
        ["bash", "--noprofile", "--norc", "-o", "pipefail"],
        cwd=directory,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        start_new_session=True,
    ) as shell:
        try:
            yield shell
        finally:
            with uninterrupted(), contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
                deadline = time.monotonic() + 5
                while time.monotonic() < deadline:
                    shell.poll()
                    os.killpg(shell.pid, 0)
                    time.sleep(0.05)
                os.killpg(shell.pid, signal.SIGKILL)


def execute(
    shell: subprocess.Popen[bytes], command: str, timeout_seconds: float
) -> tuple[int, list[str]]:
    """Runs a command in the session, printing its output; returns exit code and output."""
    if shell.stdin is None or shell.stdout is None:
        raise ValueError("the session has no pipes")
    end = f"end of command {uuid.uuid4().hex}: "
    script = f"eval {shlex.quote(command)} </dev/null\nprintf '%s%s\\n' {shlex.quote(end)} $?\n"
    shell.stdin.write(script.encode())
    deadline = time.monotonic() + timeout_seconds
    output, unfinished = [], b""
    while True:
        # Never wait for the end of the stream: a server in the background keeps it open.
        ready, _, _ = select.select([shell.stdout], [], [], 0.2)
        chunk = shell.stdout.read(65536) if ready else b""
        *finished, unfinished = (unfinished + chunk).split(b"\n")
        for line in finished:
            text, ended, code = line.decode(errors="replace").partition(end)
            if text or not ended:
                output.append(text)
                CONSOLE.out(*clean([text]), highlight=False)
            if ended:
                return int(code), clean(output)
        dead = not chunk and shell.poll() is not None
        if dead or time.monotonic() > deadline:
            CONSOLE.out(*clean([unfinished.decode(errors="replace")]), highlight=False)
            late = f"it did not end within {timeout_seconds:g} s"
            raise StepError("it ended the session" if dead else late)


def play_step(shell: subprocess.Popen[bytes], step: Step, timeout_seconds: float) -> None:
    """Runs a command; raises a StepError if it does not do what the README shows."""
    CONSOLE.out("$ " + step.command.replace("\n", "\n> "), style="bold", highlight=False)
    started = time.monotonic()
    code, output = execute(shell, step.command, timeout_seconds)
    may_fail = step.expected is not None and step.expected[-1].startswith("make: *** ")
    if code != 0 and not may_fail:
        raise StepError(f"it ended with exit code {code}")
    if step.expected is not None and (parted := difference(step.expected, output)):
        raise StepError(describe(step.expected, output, *parted))
    CONSOLE.out(f"✓ {time.monotonic() - started:.1f} s\n", style="green", highlight=False)


def describe(expected: list[str], output: list[str], shown: int, printed: int) -> str:
    """Shows the difference between README and output, from the first line that differs."""
    before = [f" {line}" for line in output[max(0, printed - 2) : printed]]
    # Skip the two lines with file names and the positions (@@), which would be wrong.
    changes = list(difflib.unified_diff(expected[shown:], output[printed:], lineterm=""))[2:]
    lines = before + [line for line in changes if not line.startswith("@@")]
    rest = [f" (and {len(lines) - 40} lines more)"] if len(lines) > 40 else []
    return "\n".join(["its output differs (- shown, + printed):", *lines[:40], *rest])


def play(pattern_dir: Path, run: Run | None, timeout_seconds: float = 600.0) -> int:
    """Plays a README; returns 0 if it matches, 1 if it differs, 2 if unplayable, 130 on Ctrl-C."""
    environment = session_environment(run)
    try:
        steps = read_steps(pattern_dir / "README.md", environment)
    except ReadmeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    status = 1
    step = steps[0]
    try:
        with session(pattern_dir, environment) as shell:
            for step in steps:
                play_step(shell, step, timeout_seconds)
        status = 0
    except StepError as failure:
        CONSOLE.out(f"✗ README.md:{step.line}: {failure}\n", style="red", highlight=False)
    except KeyboardInterrupt:
        CONSOLE.out("✗ interrupted\n", style="red", highlight=False)
        status = 130
    finally:
        if status != 0:
            with uninterrupted():
                leave_nothing_running(pattern_dir, environment, steps[-1], timeout_seconds)
    return status


def leave_nothing_running(
    pattern_dir: Path, environment: dict[str, str], last: Step, timeout_seconds: float
) -> None:
    """Runs the last command of the README in a new session."""
    try:
        with session(pattern_dir, environment) as shell:
            play_step(shell, last._replace(expected=None), timeout_seconds)
    except StepError as failure:
        warning = f"✗ `{last.command}` failed, something may still run: {failure}"
        CONSOLE.out(warning, style="red", highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.play.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pattern_dir", type=Path, help="the directory of the pattern")
    parser.add_argument("--run", choices=["docker", "local"], help="exported to make as RUN")
    parser.add_argument("--timeout-seconds", type=float, default=600.0, help="of each command")
    arguments = parser.parse_args()
    interrupt_once()
    try:
        return play(arguments.pattern_dir, arguments.run, arguments.timeout_seconds)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
