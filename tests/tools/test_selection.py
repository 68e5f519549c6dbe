"""Options and directories select the patterns to test; slow tests run only if FULL is set."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.check import selection
from tools.read.patterns import ROOT

pytest_plugins = ["pytester"]

WEB_SINGLE = "chapter4_serving_patterns/web_single_pattern"
MODEL_DB = "chapter2_training/model_db"
FILES = {
    f"tests/{WEB_SINGLE.replace('/', '/test_')}": "def test_own(): pass",
    f"tests/{MODEL_DB.replace('/', '/test_')}": """
        import pytest

        @pytest.mark.parametrize("other", ["web_single_pattern"])
        def test_own(other): pass

        @pytest.mark.slow
        def test_slow(): pass
    """,
    "tests/test_readmes": f"""
        import pytest

        @pytest.mark.parametrize("name", ["{WEB_SINGLE}", "{MODEL_DB}"])
        def test_each(name): pass

        @pytest.mark.pattern("{WEB_SINGLE}", "{MODEL_DB}")
        def test_both(): pass
    """,
    "tests/test_contract": f"""
        import pytest

        @pytest.mark.parametrize("name", ["{WEB_SINGLE}", "{MODEL_DB}"])
        def test_each(name): pass
    """,
    "tests/test_all": "def test_all(): pass",
    "tests/tools/test_copies": """
        import pytest

        @pytest.mark.parametrize("name", ["web_single_pattern"])
        def test_tool(name): pass
    """,
}
OF_WEB_SINGLE = {
    "chapter4_serving_patterns/test_web_single_pattern.py::test_own",
    f"test_contract.py::test_each[{WEB_SINGLE}]",
    f"test_readmes.py::test_each[{WEB_SINGLE}]",
    "test_readmes.py::test_both",
}
OF_MODEL_DB = {
    "chapter2_training/test_model_db.py::test_own[web_single_pattern]",
    "chapter2_training/test_model_db.py::test_slow",
    f"test_contract.py::test_each[{MODEL_DB}]",
    f"test_readmes.py::test_each[{MODEL_DB}]",
    "test_readmes.py::test_both",
}
OF_THE_TOOLS = {"test_all.py::test_all", "tools/test_copies.py::test_tool[web_single_pattern]"}
ALL = OF_WEB_SINGLE | OF_MODEL_DB | OF_THE_TOOLS
SLOW = {"chapter2_training/test_model_db.py::test_slow"}


@pytest.fixture(autouse=True)
def files(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    markers = "[pytest]\nmarkers =\n    slow\n    pattern\n"
    pytester.makeini(markers)
    pytester.makepyfile(**FILES)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setattr(selection, "FULL", True)
    # pytester runs in this process, which may have imported modules of the same names.
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        monkeypatch.delitem(sys.modules, name)


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    plugins = ("-pno:schemathesis", "-pno:xdist", "-ptools.check.selection", "--strict-markers")
    return pytester.runpytest_inprocess(*plugins, "--import-mode=importlib", "-v", *options)


def chosen(pytester: pytest.Pytester, *options: str) -> set[str]:
    lines = run(pytester, *options).stdout.str().splitlines()
    tests = {line.partition(" PASSED")[0] for line in lines if " PASSED" in line}
    return {test.rpartition("tests/")[2] for test in tests}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (WEB_SINGLE, OF_WEB_SINGLE),
        ("web_single_pattern", OF_WEB_SINGLE),
        ("chapter2_training", OF_MODEL_DB),
        ("tools", OF_THE_TOOLS),
        (f"tools {MODEL_DB}", OF_THE_TOOLS | OF_MODEL_DB),
        ("everything", ALL),
    ],
)
def test_a_test_belongs_to_the_pattern_of_its_file_its_mark_or_its_parameters(
    pytester: pytest.Pytester, names: str, expected: set[str]
) -> None:
    assert chosen(pytester, "--only", names) == expected
    # --without runs exactly the tests that --only leaves out.
    assert chosen(pytester, "--without", names) == ALL - expected


def test_without_options_every_test_runs(pytester: pytest.Pytester) -> None:
    assert chosen(pytester) == chosen(pytester, "--only=", "--without=") == ALL


def test_slow_tests_run_only_with_full(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "FULL", False)
    assert chosen(pytester) == ALL - SLOW
    assert chosen(pytester, "--only", MODEL_DB) == OF_MODEL_DB - SLOW


@pytest.mark.parametrize("option", ["--only", "--without"])
def test_an_unknown_name_is_an_error_that_lists_the_names(
    pytester: pytest.Pytester, option: str
) -> None:
    refused = run(pytester, option, "tools web_singel_pattern")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    expected = f"*{option}: there is no web_singel_pattern; there are: *{WEB_SINGLE}*"
    refused.stderr.fnmatch_lines([expected])


def without_readmes(tests: set[str]) -> set[str]:
    return {test for test in tests if not test.startswith("test_readmes.py")}


@pytest.mark.parametrize(
    ("directory", "arguments", "expected"),
    [
        (WEB_SINGLE, [], OF_WEB_SINGLE),
        (f"{WEB_SINGLE}/app", [], OF_WEB_SINGLE),
        ("chapter2_training", [], OF_MODEL_DB),
        (".", [WEB_SINGLE], OF_WEB_SINGLE),
        ("tests", [f"../{WEB_SINGLE}/", "../chapter2_training"], OF_WEB_SINGLE | OF_MODEL_DB),
    ],
)
def test_pytest_runs_the_tests_of_the_directory_it_is_given_or_started_in(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    directory: str,
    arguments: list[str],
    expected: set[str],
) -> None:
    for name in (f"{WEB_SINGLE}/app", MODEL_DB):
        (pytester.path / name).mkdir(parents=True)
    monkeypatch.chdir(pytester.path / directory)
    assert chosen(pytester, *arguments) == without_readmes(expected)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([WEB_SINGLE, "tests/tools"], "cannot be combined with other tests"),
        (
            ["chapter4_serving_patterns/other"],
            "--only: there is no chapter4_serving_patterns/other",
        ),
    ],
)
def test_a_directory_whose_tests_cannot_be_selected_is_an_error(
    pytester: pytest.Pytester, arguments: list[str], reason: str
) -> None:
    for argument in arguments:
        (pytester.path / argument).mkdir(parents=True, exist_ok=True)
    refused = run(pytester, *arguments)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines([f"*{reason}*"])


def test_pytest_in_the_directory_of_a_real_pattern_collects_its_tests_and_its_contract() -> None:
    command = [str(Path(sys.executable).with_name("pytest")), "--collect-only", "--quiet"]
    collected = subprocess.run(
        command, cwd=ROOT / WEB_SINGLE, capture_output=True, text=True, check=True
    )
    tests = [line for line in collected.stdout.splitlines() if "::" in line]
    assert {test.partition("::")[0] for test in tests} == {
        f"tests/{WEB_SINGLE.replace('/', '/test_')}.py",
        "tests/test_contract.py",
    }
    contract = [test for test in tests if test.startswith("tests/test_contract.py")]
    assert all("web_single_pattern" in test for test in contract)


def test_selecting_no_test_is_an_error(pytester: pytest.Pytester) -> None:
    assert run(pytester, "--without=everything").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_in_parallel_runs_the_longest_file_comes_first(
    pytester: pytest.Pytester, request: pytest.FixtureRequest
) -> None:
    items = [item for file in FILES for item in pytester.getitems("def test_it(): pass")]
    for item, file in zip(items, FILES, strict=True):
        item.path = pytester.path / f"{file}.py"
    assert selection.in_order(items, side_by_side=False) == items
    readmes, contract, *others = selection.in_order(items, side_by_side=True)
    assert readmes.path.name == "test_readmes.py"
    assert contract.path.name == "test_contract.py"
    assert others == [item for item in items if item not in (readmes, contract)]
