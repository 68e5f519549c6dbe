"""The changes since the verified commit decide what is tested thoroughly."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.check.changes import (
    BASE_FILE,
    EVERYTHING,
    TOOLCHAIN_PATTERNS,
    TOOLS,
    main,
)
from tools.generate.copies import tracked
from tools.read.patterns import ROOT, patterns

ASYNCHRONOUS = "chapter4_serving_patterns/asynchronous_pattern"
WEB_SINGLE = "chapter4_serving_patterns/web_single_pattern"
CIRCUIT_BREAKER = "chapter6_operation_management/circuit_breaker_pattern"
SVC = "chapter2_training/iris_sklearn_svc"
MODEL_DB = "chapter2_training/model_db"
MODEL_LOAD = "chapter3_release_patterns/model_load_pattern"
OF_THE_TOOLCHAIN = {TOOLS, ASYNCHRONOUS, WEB_SINGLE, CIRCUIT_BREAKER}


def git(root: Path, *arguments: str) -> str:
    options = ["-c", "user.name=nobody", "-c", "user.email=", "-c", "commit.gpgsign=false"]
    command = ["git", *options, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message=a change")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository with one commit, the verified one."""
    root = tmp_path_factory.mktemp("changes") / "repository"
    for name in tracked(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    git(root, "init", "--quiet")
    commit(root)
    (root / BASE_FILE).write_text(git(root, "rev-parse", "HEAD"))
    commit(root)
    return root


@pytest.fixture
def clone(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("CI_BASE", raising=False)
    git(repository, "clone", "--quiet", ".", str(tmp_path / "clone"))
    yield tmp_path / "clone"


@pytest.fixture
def found(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], set[str]]:
    """Runs the command on the clone and returns the names it prints."""

    def names() -> set[str]:
        monkeypatch.setattr("sys.argv", ["changes", str(clone)])
        assert main() == 0
        return set(capsys.readouterr().out.split())

    return names


SESSION = "\n```console\n$ true\n```\n"


def append(path: Path, text: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


CHANGES = {
    f"{CIRCUIT_BREAKER}/manifests/hpa.yml": {CIRCUIT_BREAKER},
    f"{CIRCUIT_BREAKER}/README.md": {CIRCUIT_BREAKER},
    f"{MODEL_DB}/app/a_new_file.py": {MODEL_DB},
    f"tests/{MODEL_DB.replace('/', '/test_')}.py": {MODEL_DB},
    "tests/tools/test_copies.py": OF_THE_TOOLCHAIN,
    "tests/conftest.py": OF_THE_TOOLCHAIN,
    "tests/test_readmes.py": OF_THE_TOOLCHAIN,
    "tools/run/a_new_file.py": OF_THE_TOOLCHAIN,
    "Makefile": OF_THE_TOOLCHAIN,
    "pattern.mk": OF_THE_TOOLCHAIN,
    "Pipfile.lock": OF_THE_TOOLCHAIN,
    ".ci/run": OF_THE_TOOLCHAIN,
    ".github/workflows/ci.yml": OF_THE_TOOLCHAIN,
    "a_new_file": OF_THE_TOOLCHAIN,
    "README.md": set(),
    "chapter2_training/README.md": set(),
    "LICENSE": set(),
    ".ci/base": set(),
    # Tests play the sessions of these files, which use the patterns.
    "CONTRIBUTING.md": {WEB_SINGLE},
    "chapter3_release_patterns/README.md": {MODEL_DB, SVC, MODEL_LOAD, WEB_SINGLE}
    | {"chapter3_release_patterns/model_in_image_pattern"},
}


@pytest.mark.parametrize(("path", "expected"), CHANGES.items(), ids=CHANGES)
def test_a_changed_file_affects_whatever_uses_it(
    clone: Path, found: Callable[[], set[str]], path: str, expected: set[str]
) -> None:
    if path == BASE_FILE:
        (clone / path).write_text(git(clone, "rev-parse", "HEAD"))
    else:
        append(clone / path, SESSION if expected and path.endswith(".md") else "\n")
    assert found() == expected


@pytest.mark.parametrize(
    "path", [f"{CIRCUIT_BREAKER}/README.md", "CONTRIBUTING.md", f"{SVC}/BOOK.md"]
)
def test_prose_affects_nothing_but_a_session_does(
    clone: Path, found: Callable[[], set[str]], path: str
) -> None:
    file = clone / path
    file.write_text(f"A new first line.\n{file.read_text('utf-8')}\nAnd a last one.\n", "utf-8")
    assert found() == set()
    append(file, SESSION)
    assert found()


@pytest.mark.parametrize("text", ["prose", "```console\n$ true\n", SESSION])
def test_a_readme_that_is_new_gone_or_malformed_affects_its_pattern(
    clone: Path, found: Callable[[], set[str]], text: str
) -> None:
    (clone / MODEL_DB / "README.md").write_text(text, "utf-8")
    (clone / MODEL_LOAD / "NEW.md").write_text(text, "utf-8")
    (clone / SVC / "README.md").unlink()
    assert found() == {MODEL_DB, MODEL_LOAD, SVC}


def test_a_change_counts_before_it_is_staged_and_after_it_is_committed(
    clone: Path, found: Callable[[], set[str]]
) -> None:
    append(clone / "Makefile")
    assert found() == OF_THE_TOOLCHAIN
    git(clone, "add", "Makefile")
    assert found() == OF_THE_TOOLCHAIN
    commit(clone)
    assert found() == OF_THE_TOOLCHAIN


def test_nothing_has_changed(found: Callable[[], set[str]]) -> None:
    assert found() == set()


def test_a_changed_original_does_not_affect_the_patterns_of_its_copies(
    clone: Path, found: Callable[[], set[str]]
) -> None:
    changed = clone / WEB_SINGLE / "app/guard.py"
    append(changed)
    mark = f"Copied from {WEB_SINGLE}/app/guard.py"
    with_copy = [
        path for path in clone.glob("chapter*/**/guard.py*") if mark in path.read_text("utf-8")
    ]
    assert len(with_copy) > 1
    for copy in with_copy:
        append(copy)
    assert found() == {WEB_SINGLE}


@pytest.mark.parametrize("first_line", ["", "# Copied from", "# Copied from here, but changed"])
def test_a_file_that_is_no_copy_any_more_affects_its_pattern(
    clone: Path, found: Callable[[], set[str]], first_line: str
) -> None:
    copy = clone / MODEL_DB / "app/guard.py"
    mark, text = copy.read_text("utf-8").split("\n", 1)
    assert mark.startswith("# Copied from ")
    copy.write_text(f"{first_line}\n{text}", "utf-8")
    assert found() == {MODEL_DB}


def test_exported_requirements_do_not_affect_their_pattern(
    clone: Path, found: Callable[[], set[str]]
) -> None:
    append(clone / MODEL_DB / "requirements.txt")
    assert found() == set()
    (clone / MODEL_DB / "requirements.txt").write_text("fastapi\n", "utf-8")
    assert found() == {MODEL_DB}


def test_a_moved_file_affects_both_places(clone: Path, found: Callable[[], set[str]]) -> None:
    (clone / f"{MODEL_DB}/moved").parent.mkdir(exist_ok=True)
    git(clone, "mv", f"{CIRCUIT_BREAKER}/envoy.yaml", f"{MODEL_DB}/moved")
    assert found() == {MODEL_DB, CIRCUIT_BREAKER}


def test_a_deleted_pattern_is_not_tested(clone: Path, found: Callable[[], set[str]]) -> None:
    shutil.rmtree(clone / MODEL_DB)
    (clone / f"tests/{MODEL_DB.replace('/', '/test_')}.py").unlink()
    assert found() == set()


def test_all_patterns_and_the_toolchain_are_everything(
    clone: Path, found: Callable[[], set[str]]
) -> None:
    for pattern in patterns(clone):
        append(pattern / "README.md", SESSION)
    assert found() == {path.relative_to(clone).as_posix() for path in patterns(clone)}
    append(clone / "Makefile")
    assert found() == {EVERYTHING}


def test_the_base_from_the_environment_takes_precedence_over_the_file(
    clone: Path, found: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    append(clone / "Makefile")
    commit(clone)
    monkeypatch.setenv("CI_BASE", git(clone, "rev-parse", "HEAD").strip())
    append(clone / f"{MODEL_DB}/README.md", SESSION)
    assert found() == {MODEL_DB}


@pytest.mark.parametrize("named", ["", " ", "0" * 40, "--help", "no such commit"])
def test_without_a_base_everything_counts(
    clone: Path, found: Callable[[], set[str]], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (clone / BASE_FILE).write_text(named)
    assert found() == {EVERYTHING}
    (clone / BASE_FILE).unlink()
    assert found() == {EVERYTHING}
    monkeypatch.setenv("CI_BASE", named)
    assert found() == {EVERYTHING}


def test_a_base_that_is_not_an_ancestor_counts_as_none(
    clone: Path, found: Callable[[], set[str]]
) -> None:
    git(clone, "checkout", "--quiet", "-b", "elsewhere")
    commit(clone)
    elsewhere = git(clone, "rev-parse", "HEAD")
    git(clone, "checkout", "--quiet", "-")
    append(clone / "README.md")
    commit(clone)
    (clone / BASE_FILE).write_text(elsewhere)
    assert found() == {EVERYTHING}


def test_in_a_shallow_clone_everything_counts(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, shallow = f"file://{repository}", tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", url, str(shallow))
    monkeypatch.setenv("CI_BASE", "HEAD")
    monkeypatch.setattr("sys.argv", ["changes", str(shallow)])
    assert main() == 0
    printed = capsys.readouterr()
    assert printed.out.split() == [EVERYTHING]
    assert printed.err == "this clone is shallow: everything counts as changed\n"


def test_the_patterns_of_the_toolchain_exist() -> None:
    assert {ROOT / name for name in TOOLCHAIN_PATTERNS} < set(patterns(ROOT))
