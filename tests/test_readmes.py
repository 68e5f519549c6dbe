"""Plays every README and CONTRIBUTING.md: the output of every command is what they show."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.generate.copies import tracked
from tools.play.readme import matches, parse
from tools.read.patterns import ROOT, patterns

NAMES = [str(pattern.relative_to(ROOT)) for pattern in patterns()]
RELEASE = ROOT / "chapter3_release_patterns"
REGISTRY = ROOT / "chapter2_training/model_db"
# The patterns that a model passes through from training to a server.
on_the_way = pytest.mark.pattern(
    "chapter2_training/iris_sklearn_svc",
    "chapter2_training/model_db",
    "chapter3_release_patterns/model_load_pattern",
)


def play(name: str, run: str) -> None:
    command = [sys.executable, "-m", "tools.play.readme", str(ROOT / name), "--run", run]
    played = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.budget("README")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_the_readme_shows_what_happens_without_docker(name: str) -> None:
    play(name, "local")


@pytest.mark.docker
@pytest.mark.budget("README with Docker")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_the_readme_shows_what_happens_with_docker(name: str) -> None:
    play(name, "docker")


@pytest.mark.slow
@pytest.mark.pattern("tools", "chapter4_serving_patterns/web_single_pattern")
@pytest.mark.timeout(900)
def test_contributing_leads_from_make_new_to_green_tests(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    for name in tracked(ROOT):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    subprocess.run(["git", "init", "--quiet"], cwd=clone, check=True)
    play_commands(clone / "CONTRIBUTING.md")


def follow_a_model(run: str) -> None:
    try:
        play_commands(RELEASE / "README.md", RUN=run)
    finally:
        for pattern in (REGISTRY, RELEASE / "model_load_pattern"):
            subprocess.run(["make", "-C", str(pattern), "down", f"RUN={run}"], check=True)


@on_the_way
@pytest.mark.timeout(900)
def test_a_model_goes_from_training_through_the_registry_to_a_server_without_docker() -> None:
    follow_a_model("local")


@pytest.mark.docker
@on_the_way
@pytest.mark.timeout(900)
def test_a_model_goes_from_training_through_the_registry_to_a_server_with_docker() -> None:
    follow_a_model("docker")


def play_commands(path: Path, **environment: str) -> None:
    """Runs all commands of a file in one shell and compares the output with the file."""
    inherited = {key: value for key, value in os.environ.items() if key != "RUN"}
    script, shown = [], []
    for step in parse(path.read_text("utf-8")):
        script.append(step.command)
        shown += step.expected or ["..."]
    played = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", "\n".join(script)],
        cwd=path.parent,
        env=inherited | {"MAKEFLAGS": "--no-print-directory"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert played.returncode == 0, played.stdout
    assert matches(shown, played.stdout.splitlines()), played.stdout
