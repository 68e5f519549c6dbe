"""Shows how one pattern differs from another: `python -m tools.generate.diff ASYNC WEB_SINGLE`.

It lists the files that only one of the two has and those that have little in common, then shows a
diff of the others. It leaves out marked copies, requirements, Markdown and `measure/`, and treats
the names of the two patterns as equal. Where one pattern has several programs, each is compared
with `app/` of the other. It needs only git and the standard library.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from difflib import SequenceMatcher
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tools.generate.copies import MarkError, read_mark, tracked
from tools.read.patterns import ROOT, patterns

LEFT_OUT = ("*.md", "measure/*", "requirements*.txt")
# Below this share of equal lines a line-by-line diff is harder to read than the two files.
LITTLE_IN_COMMON = 0.3
# A module of a program, which may be app/ in one pattern and have its own name in another.
MODULE = re.compile(r"(?!train/)\w+/(\w+\.py)")
PAGER = "less -FRX"


class DiffError(Exception):
    """The two patterns cannot be compared."""


class File(NamedTuple):
    """A file's text, its path and its original's path, both relative to the root."""

    text: str
    path: str
    original: str


def pattern_of(name: str, root: Path = ROOT) -> Path:
    """Returns the directory of a pattern by its name or path."""
    found = patterns(root)
    for pattern in found:
        if name in {pattern.name, str(pattern), pattern.relative_to(root).as_posix()}:
            return pattern
    problem = f"there is no pattern {name}:" if name else "which pattern?"
    names = "".join(f"\n  {pattern.name}" for pattern in found)
    raise DiffError(f"{problem} WITH= is one of{names}")


def files_of(root: Path, pattern: Path, named: Path) -> dict[str, File]:
    """Returns the compared files of a pattern, in which the name of `named` replaces its own."""
    found = {}
    directory = f"{pattern.relative_to(root).as_posix()}/"
    for path in sorted(tracked(root)):
        name = path.removeprefix(directory)
        if name != path and not any(fnmatch(name, glob) for glob in LEFT_OUT):
            mark = read_mark(root, path)
            text = (root / path).read_text("utf-8", errors="replace")
            for old, new in zip(spellings(pattern), spellings(named), strict=True):
                text = text.replace(old, new)
            found[name] = File(text, path, mark[0] if mark else path)
    return found


def spellings(pattern: Path) -> tuple[str, str]:
    return pattern.name, pattern.name.replace("_", "-")


def difference(root: Path, here: Path, other: Path, *, colour: bool = False) -> str:
    """Returns the list of files and the diff; empty if there is no difference."""
    ours, theirs = files_of(root, here, here), files_of(root, other, here)
    originals = [{file.original for file in files.values()} for files in (ours, theirs)]
    in_both = originals[0] & originals[1]
    ours = {name: file for name, file in ours.items() if file.original not in in_both}
    theirs = {name: file for name, file in theirs.items() if file.original not in in_both}

    lines: list[str] = []
    compared = []
    beside = {name: counterpart(name, theirs) for name in ours}
    for name, file in ours.items():
        if file.original != file.path:
            lines.append(f"copied into {here.name}: {name}, from {file.original}")
        elif not (old := beside[name]):
            lines.append(f"only in {here.name}: {name}, {count(file)}")
        elif not alike(file, theirs[old]):
            lines.append(f"rewritten in {here.name}: {name}, {count(file)}")
        else:
            compared.append(name)
    for name in theirs.keys() - set(beside.values()):
        lines.append(f"only in {other.name}: {name}, {count(theirs[name])}")
    shown = git_diff(
        (other.name, {name: theirs[beside[name]].text for name in compared}),
        (here.name, {name: ours[name].text for name in compared}),
        colour=colour,
    )
    return "".join(f"{line}\n" for line in sorted(lines)) + shown


def counterpart(name: str, others: Mapping[str, File]) -> str:
    """Returns the file of the other pattern to compare with a file; empty if there is none.

    It has the same name or, if a pattern has several programs, the same name in another program.
    """
    if name in others:
        return name
    module = MODULE.fullmatch(name)
    for other in others:
        its_module = MODULE.fullmatch(other)
        if module and its_module and its_module[1] == module[1]:
            return other
    return ""


def alike(one: File, other: File) -> bool:
    """Tells whether two files have enough lines in common for a diff."""
    matcher = SequenceMatcher(None, one.text.splitlines(), other.text.splitlines())
    return matcher.ratio() >= LITTLE_IN_COMMON


def count(file: File) -> str:
    return f"{len(file.text.splitlines())} lines"


def git_diff(
    old: tuple[str, dict[str, str]], new: tuple[str, dict[str, str]], *, colour: bool
) -> str:
    """Returns git's diff of two directories, each given as its name and its texts by path."""
    options = ["--no-index", "--no-prefix", "--no-ext-diff"]
    options += ["--color=always" if colour else "--color=never"]
    with tempfile.TemporaryDirectory() as directory:
        for side, texts in (old, new):
            (Path(directory) / side).mkdir()
            for name, text in texts.items():
                path = Path(directory) / side / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, "utf-8")
        shown = subprocess.run(
            ["git", "diff", *options, old[0], new[0]],
            cwd=directory,
            stdout=subprocess.PIPE,
            check=False,
        )
    # git exits with 1 if there is a difference.
    if shown.returncode > 1:
        raise DiffError("git cannot compare the files, see above")
    return shown.stdout.decode(errors="replace")


def show(text: str) -> None:
    """Prints a text, through a pager on a terminal."""
    if sys.stdout.isatty():
        pager = shlex.split(os.environ.get("PAGER") or PAGER)
        try:
            subprocess.run(pager, input=text.encode(), check=False)
            return
        except OSError:
            # There is no such pager.
            pass
    sys.stdout.write(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("here", help="the pattern to read")
    parser.add_argument("other", help="the pattern to compare it with")
    arguments = parser.parse_args()
    try:
        here, other = pattern_of(arguments.here), pattern_of(arguments.other)
        if here == other:
            raise DiffError(f"{here.name} is the pattern itself: name another one")
        text = difference(ROOT, here, other, colour=sys.stdout.isatty())
    except (DiffError, MarkError) as error:
        sys.exit(f"error: {error}")
    show(text or f"{here.name} and {other.name} differ only in files that are left out\n")


if __name__ == "__main__":
    main()
