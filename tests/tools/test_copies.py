"""Tests tools/generate/copies.py in real git repositories."""

import os
import subprocess
from pathlib import Path

import pytest

from tools.generate import copies

PROJECT = Path(__file__).resolve().parents[2]
GUARD = '"""Guards the one_pattern."""\n\nLIMIT_BYTES = 1000\n'


@pytest.fixture(autouse=True)
def no_outer_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes variables that a git hook sets to name another repository."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Creates a repository with one original."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    write(tmp_path, "one/guard.py", GUARD)
    return tmp_path


def write(root: Path, path: str, text: str) -> Path:
    """Writes a file and creates its parent directories."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode())
    return file


def drifted(root: Path) -> list[str]:
    """Returns the copies that differ from what their marks say."""
    expected = copies.copies(root)
    return [path for path in expected if (root / path).read_bytes() != expected[path].encode()]


def error_of(root: Path) -> str:
    """Returns the error message about the marks of a repository."""
    with pytest.raises(copies.MarkError) as refused:
        copies.copies(root)
    return str(refused.value)


def test_a_copy_that_equals_its_original_is_accepted(root: Path) -> None:
    write(root, "two/guard.py", f"# Copied from one/guard.py\n{GUARD}")
    assert drifted(root) == []


def test_replacements_are_applied_to_the_whole_text_in_order(root: Path) -> None:
    mark = "# Copied from one/guard.py with one_pattern->two_pattern, 1000->20, two_->b_\n"
    write(root, "two/guard.py", mark + '"""Guards the b_pattern."""\n\nLIMIT_BYTES = 20\n')
    assert drifted(root) == []


def test_a_replaced_text_may_contain_commas(root: Path) -> None:
    write(root, "one/original", "first, second, third\n")
    copies.write_copy(root, "one/original", "two/copy", [("first, second", "{{ both }}")])
    mark, text = (root / "two/copy").read_text().splitlines()
    assert mark == "# Copied from one/original with first, second->{{ both }}"
    assert text == "{{ both }}, third"
    assert drifted(root) == []
    mark = "# Copied from one/original with first, second->1, , third->, 1->one"
    write(root, "two/copy", f"{mark}\none\n")
    assert drifted(root) == []


@pytest.mark.parametrize(
    "text",
    [
        GUARD + "\n",
        GUARD.rstrip("\n"),
        GUARD.replace("1000", "1001"),
        GUARD.replace("\n", "\r\n"),
        "",
        "\n" + GUARD,
    ],
    ids=["line_more", "no_last_newline", "other_number", "crlf", "empty", "line_before"],
)
def test_a_copy_that_differs_is_rejected(root: Path, text: str) -> None:
    write(root, "two/guard.py", f"# Copied from one/guard.py\n{text}")
    assert drifted(root) == ["two/guard.py"]
    assert copies.copies(root)["two/guard.py"] == f"# Copied from one/guard.py\n{GUARD}"


def test_a_changed_original_drifts_all_its_copies(root: Path) -> None:
    for name in ("two", "three"):
        copies.write_copy(root, "one/guard.py", f"{name}/guard.py", [])
    write(root, "one/guard.py", GUARD.replace("1000", "5"))
    assert drifted(root) == ["three/guard.py", "two/guard.py"]
    assert "LIMIT_BYTES = 5" in copies.copies(root)["two/guard.py"]


@pytest.mark.parametrize(
    ("path", "mark"),
    [
        ("two/a.py", "# Copied from one/original with a->b"),
        ("two/Makefile", "# Copied from one/original with a->b"),
        ("two/a.yml", "# Copied from one/original with a->b"),
        ("two/a.md", "<!-- Copied from one/original with a->b -->"),
        ("two/a.html", "<!-- Copied from one/original with a->b -->"),
        ("two/a.css", "/* Copied from one/original with a->b */"),
        ("two/a.sql", "-- Copied from one/original with a->b"),
        ("two/a.js", "// Copied from one/original with a->b"),
        ("two/a.py.jinja", "{# Copied from one/original with a->b #}"),
    ],
)
def test_a_mark_is_a_comment_of_its_language(root: Path, path: str, mark: str) -> None:
    write(root, "one/original", "banana\n")
    copies.write_copy(root, "one/original", path, [("a", "b")])
    assert (root / path).read_text() == f"{mark}\nbbnbnb\n"
    assert drifted(root) == []
    write(root, path, f"{mark}\nbanana\n")
    assert drifted(root) == [path]


def test_a_copy_gets_the_executable_bit_of_its_original(root: Path) -> None:
    (root / "one/guard.py").chmod(0o755)
    copies.write_copy(root, "one/guard.py", "two/guard.py", [])
    assert (root / "two/guard.py").stat().st_mode & 0o111


def test_only_files_that_git_tracks_or_would_track_are_read(root: Path) -> None:
    write(root, ".gitignore", "ignored/\n")
    write(root, "ignored/guard.py", "# Copied from nowhere\n")
    (root / "two").mkdir()
    (root / "two/link.py").symlink_to("../ignored/guard.py")
    deleted = write(root, "two/deleted.py", "# Copied from nowhere\n")
    subprocess.run(["git", "-C", str(root), "add", "."], check=True)
    deleted.unlink()
    assert drifted(root) == []
    write(root, "two/guard.py", "# Copied from ignored/guard.py\n")
    assert error_of(root) == "two/guard.py: its original ignored/guard.py is not in the repository"


def test_a_binary_file_is_not_a_copy(root: Path) -> None:
    (root / "one/model.onnx").write_bytes(bytes(range(256)) * 100)
    assert drifted(root) == []


def test_a_missing_original_is_an_error(root: Path) -> None:
    write(root, "two/guard.py", "# Copied from one/gone.py\n")
    assert error_of(root) == "two/guard.py: its original one/gone.py is not in the repository"


def test_an_original_outside_the_repository_is_an_error(root: Path) -> None:
    write(root, "two/guard.py", "# Copied from ../guard.py\n")
    assert "../guard.py is not in the repository" in error_of(root)


def test_a_copy_of_a_copy_is_an_error_that_names_the_true_original(root: Path) -> None:
    write(root, "two/guard.py", f"# Copied from one/guard.py\n{GUARD}")
    write(root, "three/guard.py", f"# Copied from two/guard.py\n{GUARD}")
    write(root, "four/guard.py", f"# Copied from three/guard.py\n{GUARD}")
    assert error_of(root).splitlines() == [
        "four/guard.py: three/guard.py is itself a copy: name its original, one/guard.py",
        "three/guard.py: two/guard.py is itself a copy: name its original, one/guard.py",
    ]


def test_copies_in_a_cycle_are_an_error(root: Path) -> None:
    write(root, "two/guard.py", f"# Copied from three/guard.py\n{GUARD}")
    write(root, "three/guard.py", f"# Copied from two/guard.py\n{GUARD}")
    assert error_of(root).count("is itself a copy") == 2


def test_a_copy_of_itself_is_an_error(root: Path) -> None:
    write(root, "two/guard.py", "# Copied from two/guard.py\n")
    assert error_of(root) == "two/guard.py is marked as a copy of itself: delete the mark"


def test_a_replacement_that_no_longer_occurs_is_an_error(root: Path) -> None:
    write(root, "two/guard.py", "# Copied from one/guard.py with LIMIT->BOUND, SIZE->WIDTH\n")
    assert error_of(root) == "two/guard.py: the text to replace, 'SIZE', is not in one/guard.py"


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\xff\xfe", b"text\0text"], ids=["no_utf_8", "nul_byte"]
)
def test_a_binary_original_is_an_error(root: Path, content: bytes) -> None:
    (root / "one/picture").write_bytes(content)
    write(root, "two/picture", "# Copied from one/picture\n")
    assert "one/picture is a binary file" in error_of(root)


@pytest.mark.parametrize(
    "first", ["#!/usr/bin/env python3", "# syntax=docker/dockerfile:1", "#escape=`"]
)
def test_an_original_whose_first_line_cannot_move_is_an_error(root: Path, first: str) -> None:
    write(root, "one/Dockerfile", f"{first}\nFROM scratch\n")
    write(root, "two/Dockerfile", f"# Copied from one/Dockerfile\n{first}\nFROM scratch\n")
    assert (
        error_of(root)
        == f"two/Dockerfile: `{first}` of one/Dockerfile must be the first line, as the mark must"
    )


@pytest.mark.parametrize(
    "mark",
    [
        "# copied from one/guard.py",
        "#Copied from one/guard.py",
        "#  Copied from one/guard.py",
        "# Copied from one/guard.py.  And more",
        "# Copied from",
        "# Copied from one/guard.py with",
        "# Copied from one/guard.py with LIMIT",
        "# Copied from one/guard.py with LIMIT>BOUND",
        "# Copied from one/guard.py with LIMIT->BOUND,1000->5",
        "# Copied from one/guard.py with LIMIT->BOUND, 1000",
        "# Copied from one/guard.py with ->BOUND",
        "<!-- Copied from one/guard.py -->",
        "// Copied from one/guard.py",
    ],
)
def test_a_malformed_mark_is_an_error(root: Path, mark: str) -> None:
    write(root, "two/guard.py", f"{mark}\n{GUARD}")
    assert error_of(root).startswith(f"two/guard.py: malformed mark `{mark.rstrip()}`: write `# C")


def test_a_mark_below_the_first_line_is_an_error(root: Path) -> None:
    write(root, "two/guard.py", f"#!/usr/bin/env python3\n# Copied from one/guard.py\n{GUARD}")
    assert error_of(root) == "two/guard.py: the mark must be the first line, move it up"


def test_all_errors_are_shown_at_once(root: Path) -> None:
    write(root, "two/guard.py", "# Copied from one/gone.py\n")
    write(root, "three/guard.py", "# copied from one/guard.py\n")
    assert len(error_of(root).splitlines()) == 2


@pytest.mark.parametrize(
    "pair", [("", "x"), ("LIMIT", "a, b"), ("LIMIT", "a->b"), ("LIMIT", "a\nb")]
)
def test_a_replacement_that_a_mark_cannot_express_is_rejected(
    root: Path, pair: tuple[str, str]
) -> None:
    with pytest.raises(copies.MarkError, match="a mark cannot express"):
        copies.write_copy(root, "one/guard.py", "two/guard.py", [pair])
    assert not (root / "two").exists()


def test_a_directory_outside_a_repository_is_an_error(tmp_path: Path) -> None:
    assert error_of(tmp_path).startswith(f"git cannot list {tmp_path}: ")


def test_the_copies_of_this_repository_equal_their_originals() -> None:
    assert drifted(PROJECT) == []
