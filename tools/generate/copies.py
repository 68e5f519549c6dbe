"""Holds marked copies of files to their originals.

A file whose first line is `# Copied from PATH` or `# Copied from PATH with old->new, old2->new2`
(as a comment of its own language, PATH from the root of the repository) equals its original below
that line, once each `old` is replaced by `new`, in order. To let a copy differ, delete the mark.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

# What opens and closes a comment; `# ` and nothing in every other kind of file.
COMMENTS = {
    ".css": ("/* ", " */"),
    ".html": ("<!-- ", " -->"),
    ".js": ("// ", ""),
    ".md": ("<!-- ", " -->"),
    ".sql": ("-- ", ""),
}
MARK = re.compile(r"Copied from (?P<original>\S+)(?: with (?P<replacements>.+))?")
ALMOST_A_MARK = re.compile(r"\W*copied from\b", re.IGNORECASE)
# Lines that work only where they are first, where the mark has to be: `#!`, `# syntax=`.
MUST_BE_FIRST = re.compile(r"#!|#\s*(?:check|escape|syntax)\s*=")

Replacements = list[tuple[str, str]]


class MarkError(Exception):
    """A mark that cannot be followed; several are one line each."""


def copies(root: Path) -> dict[str, str]:
    """Gives the text that each marked copy has to hold; the paths are from the root.

    Raises:
        MarkError: marks cannot be followed; it names all of them, a line each.
    """
    texts, errors = {}, []
    files = tracked(root)
    for path in sorted(files):
        try:
            if mark := read_mark(root, path):
                texts[path] = text_of_copy(root, files, *mark, path)
        except MarkError as error:
            errors.append(str(error))
    if errors:
        raise MarkError("\n".join(errors))
    return texts


def write_copy(root: Path, original: str, copy: str, replacements: Replacements) -> None:
    """Writes a marked copy; the paths are from the root of the repository."""
    for old, new in replacements:
        if not old or re.search("->|, |\n", f"{old} {new}"):
            raise MarkError(f"{copy}: a mark cannot say that {old!r} is replaced by {new!r}")
    text = text_of_copy(root, tracked(root), original, replacements, copy)
    (root / copy).parent.mkdir(parents=True, exist_ok=True)
    (root / copy).write_bytes(text.encode())
    # A copy is as executable as its original.
    shutil.copymode(root / original, root / copy)


def tracked(root: Path) -> set[str]:
    """Lists the files that git tracks or would track."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others"]
    listing = subprocess.run([*command, "--exclude-standard"], capture_output=True, check=False)
    if listing.returncode != 0:
        raise MarkError(f"git cannot list {root}: {listing.stderr.decode().strip()}")
    paths = set(os.fsdecode(listing.stdout).split("\0")) - {""}
    return {path for path in paths if (root / path).is_file() and not (root / path).is_symlink()}


def read_mark(root: Path, path: str) -> tuple[str, Replacements] | None:
    """Reads the original and the replacements off the mark of a file, None if it has none."""
    with (root / path).open("rb") as file:
        first, second = (file.readline(10_000).decode(errors="replace").rstrip() for _ in range(2))
    opening, closing = COMMENTS.get(Path(path).suffix, ("# ", ""))
    if mark := MARK.fullmatch(first.removeprefix(opening).removesuffix(closing)):
        pairs = [pair.split("->") for pair in (mark["replacements"] or "").split(", ") if pair]
        replacements = [(pair[0], pair[-1]) for pair in pairs if len(pair) == 2 and pair[0]]
        if first == mark_line(path, mark["original"], replacements):
            return mark["original"], replacements
    if ALMOST_A_MARK.match(first):
        meant = mark_line(path, "PATH", [("old", "new"), ("old2", "new2")])
        raise MarkError(f"{path}: malformed mark `{first}`: write `{meant}`")
    if second.startswith(f"{opening}Copied from "):
        raise MarkError(f"{path}: the mark must be the first line, move it up")
    return None


def mark_line(path: str, original: str, replacements: Replacements) -> str:
    """Writes the mark of a copy as a comment in its language."""
    opening, closing = COMMENTS.get(Path(path).suffix, ("# ", ""))
    pairs = ", ".join(f"{old}->{new}" for old, new in replacements)
    return f"{opening}Copied from {original}{' with ' if pairs else ''}{pairs}{closing}"


def text_of_copy(
    root: Path, files: set[str], original: str, replacements: Replacements, copy: str
) -> str:
    """Gives the text that a copy has to hold, its mark included."""
    if original == copy:
        raise MarkError(f"{copy} is marked as a copy of itself: delete the mark")
    if original not in files:
        raise MarkError(f"{copy}: its original {original} is not in the repository")
    if read_mark(root, original):
        true = true_original(root, files, original)
        raise MarkError(f"{copy}: {original} is a copy itself: name its original, {true}")
    try:
        text = (root / original).read_bytes().decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise MarkError(f"{copy}: its original {original} is a binary file, which has no lines")
    if MUST_BE_FIRST.match(text):
        first = text.splitlines()[0]
        raise MarkError(f"{copy}: `{first}` of {original} would not be the first line of a copy")
    for old, new in replacements:
        if old not in text:
            raise MarkError(f"{copy}: {old!r}, to be replaced, is not in {original}")
        text = text.replace(old, new)
    return f"{mark_line(copy, original, replacements)}\n{text}"


def true_original(root: Path, files: set[str], path: str) -> str:
    """Follows marks to the file that is no copy; copies in a ring end at one of the ring."""
    seen: set[str] = set()
    while path in files and path not in seen and (mark := read_mark(root, path)):
        seen.add(path)
        path = mark[0]
    return path
