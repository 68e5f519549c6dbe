"""A clone works the same, whatever the settings of the machine and wherever it lies."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.generate.copies import tracked
from tools.read.patterns import ROOT


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository with the files of this one, at a path hard to quote."""
    root = tmp_path / "Bücher und Code" / 'ml $system, "it\'s" `new`'
    for name in tracked(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    subprocess.run(["git", "init", "--quiet", "--template=", root], check=True)
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    return root


@pytest.mark.slow
def test_make_check_passes_at_a_path_hard_to_quote(origin: Path) -> None:
    (origin / ".venv").symlink_to(Path(sys.prefix))
    # mypy knows files by their path in the repository, so it finds here what it has checked there.
    command = ["env", f"MYPY_CACHE_DIR={ROOT}/.mypy_cache", "make", "check"]
    checked = subprocess.run(command, cwd=origin, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert " rules: all hold\n" in checked.stdout
    # The files there are what is checked.
    (origin / "tools/run/__main__.py").write_text("import os\n")
    failed = subprocess.run(command, cwd=origin, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "`os` imported but unused" in failed.stdout


def test_git_converts_no_line_ends(origin: Path, tmp_path: Path) -> None:
    clone, names = tmp_path / "clone", tracked(ROOT)
    command = ["git", "-c", "core.autocrlf=true", "checkout-index", "--all", f"--prefix={clone}/"]
    subprocess.run(command, cwd=origin, check=True)
    assert names
    assert {name for name in names if different(clone / name, ROOT / name)} == set()


def different(path: Path, other: Path) -> bool:
    return path.read_bytes() != other.read_bytes()
