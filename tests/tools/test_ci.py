"""The CI script tests the changes thoroughly and the rest without Docker."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tools.read.patterns import ROOT

# Logs its calls; `changed` prints the changes that the test specifies.
MAKE = """#!/bin/sh
echo "make $*" >> calls
case "$*" in *"$FAILS"*) exit 3;; esac
case "$*" in "-s changed") printf "$CHANGED";; esac
"""
CHECK, CHANGED = "make check", "make -s changed"


def ci(root: Path, changed: str, fails: str = "nothing") -> subprocess.CompletedProcess[str]:
    """Runs the script with a `make` that only logs its calls and a `docker` that does nothing."""
    (root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", root / ".ci/run")
    (root / "bin").mkdir()
    for name, text in {"make": MAKE, "docker": "#!/bin/sh\n"}.items():
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CHANGED": changed, "FAILS": fails}
    command = ["bash", str(root / ".ci/run")]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("", ["make test WITHOUT="]),
        (
            "tools\\nmodel_db\\n",
            [
                "make test FULL=1 ONLY=tools model_db",
                "make test WITHOUT=tools model_db",
                "make test RUN=docker FULL=1 ONLY=tools model_db",
            ],
        ),
        (
            "everything\\n",
            ["make test FULL=1 ONLY=everything", "make test RUN=docker FULL=1 ONLY=everything"],
        ),
    ],
    ids=["nothing", "some", "everything"],
)
def test_the_changes_decide_which_tests_run(
    tmp_path: Path, changed: str, expected: list[str]
) -> None:
    run = ci(tmp_path, changed)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "calls").read_text().splitlines() == [CHECK, CHANGED, *expected]
    # One line for the checks and one for each test run.
    assert run.stdout.count("   0:0") == 1 + len(expected)


def test_the_first_failing_stage_ends_the_run_and_the_times_are_shown(
    tmp_path: Path,
) -> None:
    run = ci(tmp_path, "tools\\n", fails="FULL=1")
    assert run.returncode == 3
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [CHECK, CHANGED, "make test FULL=1 ONLY=tools"]
    assert run.stdout.endswith("every test of what has changed\n")


def test_a_failure_to_determine_the_changes_ends_the_run(tmp_path: Path) -> None:
    assert ci(tmp_path, "", fails="changed").returncode == 3
    assert (tmp_path / "calls").read_text().splitlines() == [CHECK, CHANGED]
