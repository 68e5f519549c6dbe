"""A clone works the same, whatever the settings of the machine and wherever it lies."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tools.generate.copies import tracked
from tools.read.patterns import ROOT


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository with the files of this one."""
    root = tmp_path / "origin"
    for name in tracked(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    subprocess.run(["git", "init", "--quiet", "--template=", root], check=True)
    subprocess.run(["git", "add", "--all"], cwd=root, check=True)
    return root


def test_git_converts_no_line_ends(origin: Path, tmp_path: Path) -> None:
    clone, names = tmp_path / "clone", tracked(ROOT)
    command = ["git", "-c", "core.autocrlf=true", "checkout-index", "--all", f"--prefix={clone}/"]
    subprocess.run(command, cwd=origin, check=True)
    assert names
    assert {name for name in names if different(clone / name, ROOT / name)} == set()


def different(path: Path, other: Path) -> bool:
    return path.read_bytes() != other.read_bytes()
