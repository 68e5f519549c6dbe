"""Tests tools/play/readme.py with real bash, real make and real background servers."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools.play import readme

PROJECT = Path(__file__).resolve().parents[2]

# A pattern that counts its starts and stops in files; `serve` imitates a server: it detaches
# itself as `make up` does, and keeps the output of the session open.
MAKEFILE = """\
up:
\t@touch started
\t@echo "up with RUN=$(RUN)"
down:
\t@[ ! -e server ] || kill $$(cat server)
\t@touch stopping; while [ -e slow ]; do :; done
\t@echo stopped >> stopped
\t@echo "down"
fail:
\t@echo "about to fail"
\t@exit 3
nested:
\t@$(MAKE) up
serve:
\t@setsid --fork sh -c 'echo $$$$ > server; exec sleep 600'
\t@until [ -s server ]; do :; done; echo "serving"
"""


def write_pattern(directory: Path, session: str) -> Path:
    """Writes a pattern whose README contains a session between make up and make down."""
    (directory / "Makefile").write_text(MAKEFILE)
    text = f"# A pattern\n\n```console\n$ make up\n{session}$ make down\n```\n"
    (directory / "README.md").write_text(text)
    return directory


def stops(directory: Path) -> int:
    """Counts how often the pattern was stopped."""
    stopped = directory / "stopped"
    return len(stopped.read_text().splitlines()) if stopped.exists() else 0


def wait_for(path: Path) -> None:
    """Waits until a file exists."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def command_line(directory: Path, *options: str) -> list[str]:
    """Returns the command line that make uses."""
    return [sys.executable, "-m", "tools.play.readme", str(directory), *options]


def run(
    directory: Path, *options: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Plays the README as make does."""
    command = command_line(directory, *options)
    settings: dict[str, Any] = {"cwd": PROJECT, "env": env, "timeout": 60}
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def test_steps_are_read_with_their_output_and_line() -> None:
    text = (
        "# Title\n\n```console\n$ make up\nready\n\n$ for i in 1; do\n>   echo $i\n> done\n1\n"
        "> no continuation\n$ true\n```\n\n```python\n$ no()\n```\n\n"
        "1. first\n\n   ```console\n   $ make down\n     indented\n   ```\n"
    )
    assert readme.parse(text) == [
        readme.Step("make up", ["ready"], 4),
        readme.Step("for i in 1; do\n  echo $i\ndone", ["1", "> no continuation"], 7),
        readme.Step("true", None, 12),
        readme.Step("make down", ["  indented"], 22),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "```bash\n$ true\n```\n",
        "```\n$ true\n```\n",
        "````markdown\n```console\n$ true\n```\n````\n",
        "~~~\n```console\n$ true\n~~~\n",
        "$ true\n",
    ],
    ids=["bash", "none", "inside_a_longer_fence", "inside_tildes", "no_fence"],
)
def test_other_blocks_are_not_played(text: str) -> None:
    assert readme.parse(text) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n```console\n$ true\n", "README.md:2: the code block is never closed"),
        ("```python\n", "README.md:1: the code block is never closed"),
        ("```console\noutput\n$ true\n```\n", "README.md:2: output without a command"),
        ("```console\noutput\n```\n", "README.md:2: output without a command"),
        ("```console\n$true\n```\n", "README.md:2: output without a command"),
        ("> ```console\n> $ true\n> ```\n", "README.md:1: ```console is not alone on its line"),
        ("- ```console\n  $ true\n  ```\n", "README.md:1: ```console is not alone on its line"),
    ],
)
def test_a_block_that_would_be_misread_is_an_error(text: str, message: str) -> None:
    with pytest.raises(readme.ReadmeError) as caught:
        readme.parse(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (["a"], ["a"]),
        (["a ... c"], ["a b c"]),
        (["..."], []),
        (["..."], ["a", "", "b"]),
        (["a", "...", "c"], ["a", "c"]),
        (["a", "...", "c"], ["a", "b", "c", "b", "c"]),
        (["  ...", "b"], ["a", "a", "b"]),
        (["...", "b", "...", "d"], ["b", "a", "b", "c", "d"]),
        (['{"id":"...","n":...}'], ['{"id":"x","n":2}']),
        (["a..."], ["a"]),
        (["a.b*"], ["a.b*"]),
        (["...", "a", "b", "...", "c"], ["a", "x", "a", "b", "c"]),
        (["... x ... x"], ["1 x 2 x 3 x"]),
    ],
)
def test_matching_output_is_accepted(expected: list[str], actual: list[str]) -> None:
    assert readme.matches(expected, actual)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (["a"], ["b"]),
        (["a"], []),
        (["a"], ["a", "b"]),
        (["a", "b"], ["b", "a"]),
        (["a", "..."], ["b", "a"]),
        (["...", "a"], ["a", "b"]),
        (["a", "...", "b", "...", "c"], ["a", "c", "b"]),
        (["a ... c"], ["a b d"]),
        (["a ... c"], ["a", "c"]),
        (["x...x"], ["x"]),
        (["a.b"], ["axb"]),
        (["a", "", "b"], ["a", "b"]),
        ([" a"], ["a"]),
        (["A"], ["a"]),
        (["1 ... 2 ... 3"], ["1 3 2"]),
    ],
)
def test_other_output_is_rejected(expected: list[str], actual: list[str]) -> None:
    assert not readme.matches(expected, actual)


def test_many_elisions_do_not_take_exponential_time() -> None:
    assert not readme.matches(["...", "a"] * 50 + ["b"], ["a"] * 2000)
    assert not readme.matches(["...".join("a" * 50) + "b"], ["a" * 20_000])


def test_a_correct_readme_is_accepted(tmp_path: Path) -> None:
    session = (
        "up with RUN=local\n"
        "$ GREETING=hello; export AUDIENCE=world; mkdir -p sub; cd sub\n"
        '$ echo "$GREETING $(sh -c \'echo $AUDIENCE\')" >&2; basename "$PWD"\n'
        "hello world\nsub\n"
        "$ cd ..\n"
        "$ cat <<END && printf 'no newline'\n> it's $((1 + 1))\n> END\n\nit's 2\nno newline\n\n"
        "$ printf '\\033[1;31mred\\033[0m  \\n\\rloading\\rdone\\n'\nred\ndone\n"
        "$ seq 1000 | tail -3\n998\n...\n"
        "$ cat\n"
        "$ make nested\nup with RUN=local\n"
        "$ sh -c 'echo out; echo error >&2; echo out'\nout\nerror\nout\n"
        "$ python -c 'import os; print(1); os.system(\"echo 2 >&2\"); print(3)'\n1\n2\n3\n"
        "$ printf 'ä\\377\\n'\nä...\n"
    )
    directory = write_pattern(tmp_path, session)
    # The runner must keep stderr and stdout in order.
    environment = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    result = run(directory, "--run", "local", env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert stops(directory) == 1
    assert result.stdout.startswith("$ make up\nup with RUN=local\n✓ ")
    assert "\n> it's $((1 + 1))\n> END\nit's 2\nno newline\n✓ " in result.stdout
    assert "\x1b" not in result.stdout


REJECTED = {
    "output_differs": ("$ echo two\none\n", "-one\n+two\n"),
    "output_more": ("$ echo one; echo two\none\n", " one\n+two\n"),
    "output_less": ("$ echo one\none\ntwo\n", " one\n-two\n"),
    "output_none": ("$ true\none\n", "-one\n"),
    "output_after_elision": ("$ seq 9\n...\n10\n", "-10\n+1\n"),
    "number_within_elision": ("$ echo '3 of 4 rows'\n3 of ... columns\n", "-3 of ... columns"),
    "command_fails": ("$ echo fine; false\nfine\n", "exit code 1"),
    "command_fails_without_output": ("$ (exit 7)\n", "exit code 7"),
    "first_of_a_pipe_fails": ("$ false | cat\n", "exit code 1"),
    "make_fails": ("$ make fail\nabout to fail\n...\n", "exit code 2"),
    "make_does_not_fail": ("$ make nested\n...\nmake: *** [...] Error 1\n", "-make: *** "),
    "make_fails_otherwise": ("$ make fail\n...\nmake: *** [...] Error 1\n", "-make: *** "),
    "syntax": ("$ for\n", "exit code 2"),
    "hangs": ("$ echo waiting; printf partial; sleep 600\nwaiting\n", "did not end within 8 s"),
    "hangs_in_a_loop": ("$ while true; do sleep 0.1; done\n", "did not end within 8 s"),
    "ends_the_session": ("$ exit 0\n", "it ended the session"),
    "unknown_path": ("$ ./no_such_program\n", "exit code 127"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_a_wrong_readme_is_rejected_and_the_pattern_stopped(name: str, tmp_path: Path) -> None:
    session, message = REJECTED[name]
    directory = write_pattern(tmp_path, f"...\n{session}$ echo 'not reached'\n")
    timeout_seconds = "8" if name.startswith("hangs") else "60"
    result = run(directory, "--timeout-seconds", timeout_seconds)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "✗ README.md:6: " in result.stdout
    assert message in result.stdout
    assert "not reached" not in result.stdout
    assert "Traceback" not in result.stderr
    assert stops(directory) == 1


def test_a_command_that_ignores_signals_is_killed_at_its_deadline(tmp_path: Path) -> None:
    session = "$ trap '' TERM; echo $$ > job; while true; do sleep 0.1; done\n"
    directory = write_pattern(tmp_path, session)
    result = run(directory, "--timeout-seconds", "8")
    assert result.returncode == 1
    assert "did not end within 8 s" in result.stdout
    assert not is_running(int((directory / "job").read_text()))
    assert stops(directory) == 1


def test_a_failing_first_command_is_cleaned_up_after(tmp_path: Path) -> None:
    directory = write_pattern(tmp_path, "something else\n")
    result = run(directory)
    assert result.returncode == 1
    assert "✗ README.md:4: " in result.stdout
    assert stops(directory) == 1


def test_a_failing_last_command_is_reported_too(tmp_path: Path) -> None:
    directory = write_pattern(tmp_path, "$ false\n")
    (directory / "Makefile").write_text("up:\n\ndown:\n\t@exit 1\n")
    result = run(directory)
    assert result.returncode == 1
    assert "✗ `make down` failed, something may still run: it ended with exit code 2" in (
        result.stdout
    )


def test_an_expected_failure_is_accepted(tmp_path: Path) -> None:
    session = (
        "$ make fail\nabout to fail\nmake: *** [Makefile:...: fail] Error 3\n"
        '$ (exit 22); echo "exit code $?"\nexit code 22\n'
    )
    directory = write_pattern(tmp_path, session)
    result = run(directory)
    assert result.returncode == 0, result.stdout


def test_a_server_in_the_background_does_not_hold_up_the_next_command(tmp_path: Path) -> None:
    session = "$ make serve\nserving\n$ sleep 600 & echo $! > job\n$ kill -0 $!\n"
    directory = write_pattern(tmp_path, session)
    result = run(directory, "--timeout-seconds", "30")
    assert result.returncode == 0, result.stdout
    assert not is_running(int((directory / "server").read_text()))
    # Background jobs end with the session.
    assert not is_running(int((directory / "job").read_text()))


def is_running(process_id: int) -> bool:
    """Tells whether a process is running; a zombie is not."""
    status = Path(f"/proc/{process_id}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_command_and_runs_the_last_one(
    number: signal.Signals, tmp_path: Path
) -> None:
    directory = write_pattern(tmp_path, "$ echo $$ > session; sleep 600\n")
    with subprocess.Popen(
        command_line(directory), cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for(directory / "session")
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "✗ interrupted" in output
    assert stops(directory) == 1
    assert not is_running(int((directory / "session").read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_does_not_leave_a_pattern_running(
    number: signal.Signals, tmp_path: Path
) -> None:
    directory = write_pattern(tmp_path, "$ touch slow; echo $$ > session; sleep 600\n")
    with subprocess.Popen(
        command_line(directory), cwd=PROJECT, stdout=subprocess.DEVNULL
    ) as process:
        wait_for(directory / "session")
        process.send_signal(number)
        wait_for(directory / "stopping")
        process.send_signal(number)
        (directory / "slow").unlink()
        assert process.wait(timeout=30) == 130
    assert stops(directory) == 1


def test_a_closed_output_pipe_does_not_leave_a_pattern_running(
    tmp_path: Path,
) -> None:
    directory = write_pattern(tmp_path, "$ seq 100000\n")
    with subprocess.Popen(command_line(directory), cwd=PROJECT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) != 0
    assert stops(directory) == 1


def test_output_is_shown_while_the_command_runs(tmp_path: Path) -> None:
    directory = write_pattern(tmp_path, "$ echo early; until [ -e go ]; do sleep 0.05; done\n")
    with subprocess.Popen(
        command_line(directory), cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        # The command continues only after the test has read its first line.
        assert any(line == "early\n" for line in process.stdout)
        (directory / "go").touch()
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Nothing\n", "no ```console block, so there is nothing to play"),
        ("```console\n```\n", "no ```console block, so there is nothing to play"),
        ("```console\n$ true\n$ make down\n```\n", "README.md:2: the first command must be"),
        ("```console\n$ make up\n$ true\n```\n", "README.md:3: the last command must be"),
        ("```console\n$ make up\n$ make down\n", "README.md:1: the code block is never closed"),
        (
            "```console\n$ make up\n$ no-such-a x | no-such-b; if no-such-c; then no-such-a; fi\n"
            "$ X=$(no-such-d 'no-such-e | no-such-f') && ! X=1 no-such-g >no-such-h 2>&1\n"
            "$ make down\n```\n",
            "not on PATH; install: no-such-a, no-such-b, no-such-c, no-such-d, no-such-g",
        ),
    ],
    ids=["no_block", "no_command", "no_make_up", "no_make_down", "not_closed", "not_on_path"],
)
def test_a_readme_that_cannot_be_played_is_an_error_before_anything_is_started(
    text: str, message: str, tmp_path: Path
) -> None:
    directory = write_pattern(tmp_path, "")
    (directory / "README.md").write_text(text)
    result = run(directory)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (directory / "started").exists()


def test_a_directory_without_a_readme_is_an_error(tmp_path: Path) -> None:
    result = run(tmp_path / "unknown_pattern")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "unknown_pattern/README.md does not exist" in result.stderr


def test_only_programs_are_looked_for() -> None:
    command = (
        "for i in 1 2; do curl -s \"http://h/?a=1&b=$i\" | jq '.a | length' > out 2>&1; done; "
        'echo "a; b" && ./run.sh x || { cat < in; }; [[ -e x ]] && time make x # and more'
    )
    assert set(readme.command_words(command)) <= {"for", "done", "curl", "jq", "echo", "make"}
    assert {"curl", "jq", "echo", "make"} <= set(readme.command_words(command))
    assert list(readme.command_words("cat <<END\na; b | c\nEND")) == ["cat"]
    assert list(readme.command_words("echo 'unbalanced")) == ["echo"]


def test_the_settings_of_an_outer_make_do_not_reach_the_commands(tmp_path: Path) -> None:
    session = (
        "up with RUN=docker\n"
        '$ echo "<$SERVICE> <$MAKELEVEL> <$MAKEFLAGS> $COLUMNS"; type -p python\n'
        f"<> <> <--no-print-directory> 100\n{Path(sys.executable).parent}/python\n"
    )
    directory = write_pattern(tmp_path, session)
    outer = tmp_path / "outer.mk"
    play = f"cd {shlex.quote(str(PROJECT))} && {shlex.join(command_line(directory))}"
    outer.write_text(f"play:\n\t{play.replace('$', '$$')}\n")
    command = ["make", "-f", str(outer), "play", "SERVICE=api", "RUN=docker"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_missing_curl_is_an_error_that_says_how_to_install_it(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "make"):
        (programs / name).symlink_to(str(shutil.which(name)))
    directory = write_pattern(tmp_path, "$ curl -sf 127.0.0.1:8000\n")
    result = run(directory, env={**os.environ, "PATH": str(programs)})
    assert result.returncode == 2
    assert "install: curl (apt install curl)\n" in result.stderr
