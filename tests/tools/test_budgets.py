"""Each test file is measured, including child processes, and shown against its budget."""

import re

import pytest

from tools.check import budgets
from tools.check.budgets import BUDGETS, Budget, Row, Used, is_over, table
from tools.read.patterns import ROOT

pytest_plugins = ["pytester"]

BUSY = """
    import subprocess, sys, time
    import pytest

    BURN = "import time\\nwhile time.process_time() < {}: pass"

    def burn(cpu_seconds: float) -> list[str]:
        return [sys.executable, "-S", "-c", BURN.format(cpu_seconds)]

    @pytest.fixture(scope="module")
    def server():
        with subprocess.Popen(burn(600), stdout=subprocess.DEVNULL) as process:
            yield process
            process.kill()
"""
# Test files that use CPU; idle files run before and after them in the same process.
WAITED_FOR = "    def test_it(): subprocess.run(burn(0.5), check=True)\n"
KILLED_AT_THE_END = """
    def test_it(server):
        import psutil
        while psutil.Process(server.pid).cpu_times().user < 0.5:
            time.sleep(0.01)
"""
MARKED = (
    WAITED_FOR
    + """
    @pytest.mark.budget("measure --quick")
    def test_quick(): subprocess.run(burn(1.5), check=True)

    @pytest.mark.slow
    def test_slow(): subprocess.run(burn(1.5), check=True)

    def test_last(): subprocess.run(burn(0.5), check=True)
"""
)


def rows(pytester: pytest.Pytester, *options: str) -> dict[tuple[str, str], float]:
    """Runs all tests in a new process and returns the CPU seconds in the table."""
    markers = "--override-ini=markers=budget(kind)\nslow"
    plugins = ("-pno:schemathesis", "-pno:hypothesispytest", "-ptools.check.budgets", markers)
    result = pytester.runpytest_subprocess(*plugins, *options)
    assert result.ret == pytest.ExitCode.OK
    shown = result.stdout.str().partition(" budgets =")[2]
    lines = re.findall(r"^(.*?)  +(\S.*?)  +([\d.]+) +([\d.]+)\b", shown, re.MULTILINE)
    return {(kind.strip(), name): float(cpu) for kind, name, _, cpu in lines}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


@pytest.mark.parametrize("options", [(), ("--numprocesses=2", "--dist=loadfile")])
@pytest.mark.parametrize("does", [WAITED_FOR, KILLED_AT_THE_END], ids=["waited for", "killed"])
def test_the_seconds_of_children_count_towards_the_file_that_started_them(
    pytester: pytest.Pytester, does: str, options: tuple[str, ...]
) -> None:
    idle = "    def test_nothing(): pass\n"
    files = {"chapter1/test_a": idle, "chapter1/test_b": does, "chapter1/test_c": idle}
    pytester.makepyfile(**{name: BUSY + test for name, test in files.items()})
    measured = rows(pytester, *options)
    assert measured[("tests of a pattern", "chapter1/test_b.py")] >= 0.5
    assert measured[("tests of a pattern", "chapter1/test_a.py")] < 0.5
    assert measured[("tests of a pattern", "chapter1/test_c.py")] < 0.5


def test_slow_tests_and_those_with_a_budget_mark_do_not_count_towards_their_file(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(**{"chapter1/test_a": BUSY + MARKED})
    measured = rows(pytester)
    assert set(measured) == {
        ("tests of a pattern", "chapter1/test_a.py"),
        ("measure --quick", "chapter1/test_a.py"),
        ("slow", "chapter1/test_a.py"),
        ("", "total"),
    }
    assert measured[("tests of a pattern", "chapter1/test_a.py")] >= 1
    assert measured[("measure --quick", "chapter1/test_a.py")] >= 1.5
    assert measured[("slow", "chapter1/test_a.py")] >= 1.5
    assert measured[("", "total")] >= 4


def test_quiet_runs_show_no_table(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_a="def test_nothing(): pass")
    assert rows(pytester, "--quiet") == {}


@pytest.mark.parametrize("kind", BUDGETS)
def test_a_row_is_over_its_budget_by_wall_clock_or_by_cpu(kind: str) -> None:
    wall, cpu = BUDGETS[kind]
    row = Row(kind, "it")
    assert is_over(row, Used(1e9, 0)) is (wall is not None)
    assert is_over(row, Used(0, 1e9)) is (cpu is not None)
    assert not is_over(row, Used(wall or 0, cpu or 0))


def test_rows_over_budget_are_marked_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "README", Budget(wall_seconds=25))
    monkeypatch.setitem(BUDGETS, "tests of a pattern", Budget(cpu_seconds=40))
    drawn = table(
        {
            Row("README", "slow_pattern"): Used(25.1, 3.0),
            Row("README", "quick_pattern"): Used(25.0, 300.0),
            Row("tests of a pattern", "test_a.py"): Used(60.0, 40.1),
            Row("other tests", "test_long.py"): Used(0.0, 1.0),
            Row("other tests", "test_short.py"): Used(0.5, 0.25),
            Row("slow", "test_short.py"): Used(0.5, 0.25),
        },
        coloured=False,
    )
    assert [" ".join(line.split()) for line in drawn.splitlines()][1:] == [
        "tests of a pattern test_a.py 60.0 40.1 40 s CPU OVER",
        "README quick_pattern 25.0 300.0 25 s wall",
        "README slow_pattern 25.1 3.0 25 s wall OVER",
        "other tests test_long.py 0.0 1.0",
        "the rest 1.0 0.5",
        "total 111.1 344.6 2 over",
    ]


def test_seconds_never_run_backwards() -> None:
    assert Used(3.0, 1.0).since(Used(1.0, 2.0)) == Used(2.0, 0.0)
    assert budgets.used().since(budgets.used()).cpu == 0.0
