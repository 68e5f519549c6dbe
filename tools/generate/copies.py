"""Keeps marked copies of files equal to their originals.

A marked copy begins with `# Copied from PATH` or `# Copied from PATH with old->new, old2->new2`, as
a comment in the file's language; PATH is relative to the root of the repository. Below that line
the file equals its original after replacing each `old` with `new`, in order. `old` may contain a
comma and a space, `new` may not. To let a copy differ, delete the mark.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

# The start and end of a comment by file type; `# ` and nothing for all other types.
COMMENTS = {
    ".css": ("/* ", " */"),
    ".html": ("<!-- ", " -->"),
    # Jinja drops this line from what it renders if `trim_blocks` is set.
    ".jinja": ("{# ", " #}"),
    ".js": ("// ", ""),
    ".md": ("<!-- ", " -->"),
    ".sql": ("-- ", ""),
}
MARK = re.compile(r"Copied from (?P<original>\S+)(?: with (?P<replacements>.+))?")
# A comma ends the new text of a replacement.
REPLACEMENT = re.compile(r"((?:(?!->).)+)->((?:(?!->|, ).)*)(?:, |$)")
ALMOST_A_MARK = re.compile(r"\W*copied from\b", re.IGNORECASE)
# Lines such as `#!` and `# syntax=` must come first, so a file that has one cannot be copied.
MUST_BE_FIRST = re.compile(r"#!|#\s*(?:check|escape|syntax)\s*=")

Replacements = list[tuple[str, str]]


class MarkError(Exception):
    """Marks cannot be followed; the message has one line for each."""


def copies(root: Path) -> dict[str, str]:
    """Returns the text that each marked copy should have, by path relative to the root."""
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
    """Writes a marked copy; paths are relative to the root."""
    for old, new in replacements:
        if not old or re.search("->|\n", f"{old} {new}") or ", " in new:
            raise MarkError(f"{copy}: a mark cannot express replacing {old!r} with {new!r}")
    text = text_of_copy(root, tracked(root), original, replacements, copy)
    (root / copy).parent.mkdir(parents=True, exist_ok=True)
    (root / copy).write_bytes(text.encode())
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
    """Returns the original and the replacements from a file's mark; None if it has no mark."""
    with (root / path).open("rb") as file:
        first, second = (file.readline(10_000).decode(errors="replace").rstrip() for _ in range(2))
    opening, closing = COMMENTS.get(Path(path).suffix, ("# ", ""))
    if mark := MARK.fullmatch(first.removeprefix(opening).removesuffix(closing)):
        replacements = REPLACEMENT.findall(mark["replacements"] or "")
        if first == mark_line(path, mark["original"], replacements):
            return mark["original"], replacements
    if ALMOST_A_MARK.match(first):
        meant = mark_line(path, "PATH", [("old", "new"), ("old2", "new2")])
        raise MarkError(f"{path}: malformed mark `{first}`: write `{meant}`")
    if second.startswith(f"{opening}Copied from "):
        raise MarkError(f"{path}: the mark must be the first line, move it up")
    return None


def mark_line(path: str, original: str, replacements: Replacements) -> str:
    """Returns the mark of a copy as a comment in its language."""
    opening, closing = COMMENTS.get(Path(path).suffix, ("# ", ""))
    pairs = ", ".join(f"{old}->{new}" for old, new in replacements)
    return f"{opening}Copied from {original}{' with ' if pairs else ''}{pairs}{closing}"


def text_of_copy(
    root: Path, files: set[str], original: str, replacements: Replacements, copy: str
) -> str:
    """Returns the text that a copy should have, including its mark."""
    if original == copy:
        raise MarkError(f"{copy} is marked as a copy of itself: delete the mark")
    if original not in files:
        raise MarkError(f"{copy}: its original {original} is not in the repository")
    if read_mark(root, original):
        true = true_original(root, files, original)
        raise MarkError(f"{copy}: {original} is itself a copy: name its original, {true}")
    try:
        text = (root / original).read_bytes().decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise MarkError(f"{copy}: its original {original} is a binary file")
    if MUST_BE_FIRST.match(text):
        first = text.splitlines()[0]
        raise MarkError(f"{copy}: `{first}` of {original} must be the first line, as the mark must")
    for old, new in replacements:
        if old not in text:
            raise MarkError(f"{copy}: the text to replace, {old!r}, is not in {original}")
        text = text.replace(old, new)
    return f"{mark_line(copy, original, replacements)}\n{text}"


def true_original(root: Path, files: set[str], path: str) -> str:
    """Follows marks to a file without one; in a cycle it stops at a member of the cycle."""
    seen: set[str] = set()
    while path in files and path not in seen and (mark := read_mark(root, path)):
        seen.add(path)
        path = mark[0]
    return path
