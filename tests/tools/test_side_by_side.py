"""Tests are divided by file and, in the contract test, by pattern."""

from collections import defaultdict

import pytest

from tools.check.side_by_side import group_of
from tools.read.patterns import ROOT

pytest_plugins = ["pytester"]

OPTIONS = ("-ptools.check.side_by_side", "--numprocesses=2")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/tools/test_copies.py::test_one", "tests/tools/test_copies.py"),
        ("tests/test_readmes.py::test_each[chapter2_training/cifar10]", "tests/test_readmes.py"),
        ("tests/test_contract.py::test_none", "tests/test_contract.py"),
        ("tests/test_contract.py::test_each[check_docs]", "tests/test_contract.py"),
        ("tests/test_contract.py::test_each[a_pattern/api]", "tests/test_contract.py::a_pattern"),
        (
            "tests/test_contract.py::test_each[check_docs-a_pattern/api-2]",
            "tests/test_contract.py::a_pattern",
        ),
    ],
)
def test_a_group_is_a_file_or_a_pattern_of_the_contract(nodeid: str, group: str) -> None:
    assert group_of(nodeid) == group


def test_a_group_stays_in_one_process(pytester: pytest.Pytester) -> None:
    each = """
        import os, pathlib, pytest

        @pytest.mark.parametrize("name", {names})
        @pytest.mark.parametrize("number", range(4))
        def test_each(name, number, request):
            with open({log!r}, "a") as log:
                log.write(f"{{os.getpid()}} {{request.node.nodeid}}\\n")
    """
    log = pytester.path / "log"
    names = [f"{letter}/api" for letter in "abcdef"]
    files = {"test_contract": names, "test_readmes": names, "test_other": ["one"]}
    for file, parameters in files.items():
        path = pytester.path / f"tests/{file}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(each.format(names=parameters, log=str(log)).replace("\n        ", "\n"))
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=4 * 13)
    processes = defaultdict(set)
    for line in log.read_text().splitlines():
        process, nodeid = line.split(" ", 1)
        processes[group_of(nodeid)].add(process)
    assert len(processes) == 8
    assert {group: len(used) for group, used in processes.items() if len(used) > 1} == {}


def test_two_patterns_of_the_contract_run_at_the_same_time(pytester: pytest.Pytester) -> None:
    """Each waits for the other, which ends only if both have a process."""
    path = pytester.path / "tests/test_contract.py"
    path.parent.mkdir()
    path.write_text(
        "import pathlib, time, pytest\n"
        "@pytest.mark.timeout(60)\n"
        "@pytest.mark.parametrize('mine, other', [('a/api', 'b/api'), ('b/api', 'a/api')])\n"
        "def test_both(mine, other):\n"
        f"    here = pathlib.Path({str(pytester.path)!r})\n"
        "    (here / mine[0]).touch()\n"
        "    while not (here / other[0]).exists():\n"
        "        time.sleep(0.05)\n"
    )
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=2)
