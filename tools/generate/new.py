"""Starts a pattern from web_single_pattern: its files as marked copies, its README as a draft."""

import argparse
import re
import sys
from pathlib import Path

from tools.generate import copies, generated
from tools.read.patterns import ROOT, patterns

ORIGINAL = "chapter4_serving_patterns/web_single_pattern"
# What measuring makes, which the new pattern does not inherit.
MEASURED = {"results.json", "plot.png"}
# These differ from their originals sooner or later in every pattern.
DRAFTS = {"README.md", "requirements.txt", "requirements-train.txt"}
NEXT = """{name} is there, as a pattern that still does what web_single_pattern does. Next:

  - README.md: the title, the tagline (also the docstring of app/main.py) and the rest.
  - A file that begins with "# Copied from" equals its original, and `make fix` keeps it so.
    To change such a file, delete that line first.
  - make measure in the directory, then make test there, then make fix and make check here."""


class NewError(Exception):
    """A pattern cannot be started under this name."""


def check_name(root: Path, name: str) -> None:
    """Raises a NewError where the name is no free place for a pattern."""
    if not re.fullmatch(r"chapter[0-9]+_[a-z_]+/[a-z][a-z0-9_]*_(anti)?pattern", name):
        example = "make new NAME=chapter4_serving_patterns/foo_pattern"
        raise NewError(
            f'"{name}" is not CHAPTER/NAME_pattern in lower case; for example: {example}'
        )
    chapters = {pattern.parent.name for pattern in patterns(root)}
    if name.split("/")[0] not in chapters:
        raise NewError(f"there is no such chapter; there are: {', '.join(sorted(chapters))}")
    if (root / name).exists():
        raise NewError(f"{name} exists already")


def test_module(name: str) -> str:
    """Returns the path of the test module of a pattern."""
    chapter, pattern = name.split("/")
    return f"tests/{chapter}/test_{pattern}.py"


def start(root: Path, name: str) -> None:
    """Writes the files of a new pattern.

    Raises:
        NewError: the name is not CHAPTER/NAME_pattern, or is taken.
    """
    check_name(root, name)
    (old_chapter, old), (chapter, new) = ORIGINAL.split("/"), name.split("/")
    replacements = [(old, new), (old.replace("_", "-"), new.replace("_", "-"))]
    if chapter != old_chapter:
        replacements.insert(0, (old_chapter, chapter))
    files = [path for path in copies.tracked(root) if path.startswith(f"{ORIGINAL}/")]
    for path in sorted([*files, test_module(ORIGINAL)]):
        copy = path.replace(ORIGINAL, name).replace(test_module(ORIGINAL), test_module(name))
        if Path(path).name in MEASURED:
            continue
        text = (root / path).read_text("utf-8")
        used = []
        for before, after in replacements:
            if before in text:
                text = text.replace(before, after)
                used.append((before, after))
        if Path(path).name in DRAFTS:
            (root / copy).parent.mkdir(parents=True, exist_ok=True)
            (root / copy).write_text(text, "utf-8")
        else:
            copies.write_copy(root, path, copy, used)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="CHAPTER/NAME_pattern")
    name: str = parser.parse_args().name
    try:
        start(ROOT, name)
    except (NewError, copies.MarkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    generated.write(ROOT)
    print(NEXT.format(name=name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
