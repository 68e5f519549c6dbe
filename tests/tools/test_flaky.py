"""A failed test runs once more; tests that then pass are listed, and too many fail the run."""

import re
from pathlib import Path

import pytest

from tools.read.patterns import ROOT

pytest_plugins = ["pytester"]

# Each test of this module passes from its second attempt on and records every attempt.
FLAKY = """
    from pathlib import Path

    import pytest

    def attempt(name: str) -> int:
        with Path(name).open("a") as file:
            file.write("x")
        return Path(name).stat().st_size
"""
PASSES_AT_SECOND = """
    def test_{name}() -> None:
        assert attempt("{name}") > 1, "the {name} bad second"
"""
SIDE_BY_SIDE = ("--numprocesses=2", "--dist=loadfile")


@pytest.fixture(params=[(), SIDE_BY_SIDE], ids=["alone", "side by side"])
def options(request: pytest.FixtureRequest) -> tuple[str, ...]:
    found: tuple[str, ...] = request.param
    return found


def run(pytester: pytest.Pytester, options: tuple[str, ...], *tests: str) -> pytest.RunResult:
    """Runs the tests of one module in a new process, which may start workers."""
    pytester.makepyfile(test_it=FLAKY + "".join(tests))
    plugins = ("-pno:schemathesis", "-pno:hypothesispytest", "-ptools.check.flaky", "--reruns=1")
    return pytester.runpytest_subprocess(*plugins, *options)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def test_two_tests_that_pass_on_the_second_attempt_are_listed_and_pass(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    tests = [PASSES_AT_SECOND.format(name=name) for name in ("first", "second")]
    result = run(pytester, options, *tests, "    def test_well() -> None: pass\n")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=3)
    shown = result.stdout.str()
    assert re.search(r"=+ flaky =+", shown)
    for name in ("first", "second"):
        assert (
            f"test_it.py::test_{name}\n    failed first: call: AssertionError: the {name}" in shown
        )
    assert "test_well" not in shown.partition(" flaky =")[2]


def test_three_of_them_fail_the_run(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    tests = [PASSES_AT_SECOND.format(name=name) for name in ("first", "second", "third")]
    result = run(pytester, options, *tests)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["3 tests are flaky, at most 2 may be: the run has failed"])


def test_a_test_that_fails_twice_fails_and_is_not_listed_as_flaky(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    fails = '    def test_fails() -> None:\n        assert attempt("fails") > 2\n'
    result = run(pytester, options, fails)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    assert not re.search(r"=+ flaky =+", result.stdout.str())
    assert Path("fails").read_text() == "xx"


def test_a_module_fixture_survives_a_rerun_unless_it_failed_itself(
    pytester: pytest.Pytester, options: tuple[str, ...]
) -> None:
    fixtures = """
    @pytest.fixture(scope="module")
    def server():
        attempt("server starts")
        yield
        attempt("server stops")

    @pytest.fixture(scope="module")
    def starts_late(server):
        assert attempt("late starts") > 1, "not ready"
        yield
        attempt("late stops")

    def test_before(server): pass

    def test_flaky(server):
        assert attempt("flaky") > 1

    def test_late(starts_late): pass

    def test_after(server, starts_late): pass
    """
    result = run(pytester, options, fixtures)
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=4)
    assert "failed first: setup: AssertionError: not ready" in result.stdout.str()
    counts = {path.name: path.stat().st_size for path in Path().iterdir() if " st" in path.name}
    assert counts == {"server starts": 1, "server stops": 1, "late starts": 2, "late stops": 1}


def test_a_debugger_gets_the_first_failure(pytester: pytest.Pytester) -> None:
    fails = PASSES_AT_SECOND.format(name="debugged")
    result = run(pytester, ("--pdb", "--pdbcls=bdb:Bdb"), fails)
    assert Path("debugged").read_text() == "x"
    assert "incompatible" not in result.stdout.str() + result.stderr.str()
