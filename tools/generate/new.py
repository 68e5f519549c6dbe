"""Creates a pattern from web_single_pattern: marked copies, a draft README and a draft test."""

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path

from tools.generate import copies, files
from tools.generate.index import PART_OF_THE_BOOK
from tools.generate.readme import tagline
from tools.read.patterns import ROOT

CHAPTERS = (
    "chapter2_training",
    "chapter3_release_patterns",
    "chapter4_serving_patterns",
    "chapter5_operations",
    "chapter6_operation_management",
)
ORIGINAL = "chapter4_serving_patterns/web_single_pattern"
# Results of measurements are not copied.
MEASURED = {"results.json", "plot.png"}
# The tests that a new pattern starts with; tests/test_contract.py covers the rest.
FIRST_TESTS = (
    "test_every_row_of_iris_is_answered_as_scikit_learn_would",
    "test_the_claim_holds_and_its_control_does_not",
)
NEXT = """{name} is there, a working copy of web_single_pattern. Next:

  - Write README.md, beginning with line 3, which is also the docstring of app/main.py.
  - `make fix` keeps a file that begins with "# Copied from" equal to its original.
    To change such a file, delete that line first.
  - If its services need different libraries, split app/ as CONTRIBUTING.md says.
  - Compare it in BOOK.md with what the book prints for it.
  - Say in the chapter's README how the pattern differs from the others.
  - Run make measure and make test in the directory, then make fix and make check here."""


class NewError(Exception):
    """The pattern cannot be created."""


def check_name(root: Path, name: str) -> None:
    if not re.fullmatch(r"chapter[0-9]+_[a-z_]+/[a-z][a-z0-9_]*_(anti)?pattern", name):
        example = "make new NAME=chapter4_serving_patterns/foo_pattern"
        raise NewError(
            f'"{name}" is not CHAPTER/NAME_pattern in lower case; for example: {example}'
        )
    if name.split("/")[0] not in CHAPTERS:
        raise NewError(f"the book has no such chapter; it has: {', '.join(CHAPTERS)}")
    if (root / name).exists():
        raise NewError(f"{name} exists already")


def test_module(name: str) -> str:
    """Returns the path of the test module of a pattern."""
    chapter, pattern = name.split("/")
    return f"tests/{chapter}/test_{pattern}.py"


def first_tests(text: str) -> str:
    """Reduces a test module to FIRST_TESTS and the definitions that they need."""
    lines = text.splitlines()
    head: list[str] = []
    bodies: dict[str, ast.stmt] = {}
    for node in ast.parse(text).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bodies[name] = node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                bodies[name] = node
            case _:
                head += ["\n".join(lines[node.lineno - 1 : node.end_lineno])]
    needed: set[str] = set()
    waiting = list(FIRST_TESTS)
    while waiting:
        name = waiting.pop()
        if name in FIRST_TESTS and name not in bodies:
            raise NewError(f"{test_module(ORIGINAL)} has no {name} any more; see FIRST_TESTS")
        if name in bodies and name not in needed:
            needed.add(name)
            found = list(ast.walk(bodies[name]))
            waiting += [node.id for node in found if isinstance(node, ast.Name)]
            # The name of an argument requests a fixture.
            waiting += [node.arg for node in found if isinstance(node, ast.arg)]
    for name, node in bodies.items():
        if name in needed:
            decorators = getattr(node, "decorator_list", [])
            start = min(each.lineno for each in [node, *decorators])
            head += ["\n".join(lines[start - 1 : node.end_lineno])]
    return "\n\n".join(head) + "\n"


def tidy(path: Path) -> None:
    """Removes unused imports and formats the file."""
    ruff = Path(sys.executable).with_name("ruff")
    subprocess.run([ruff, "check", "--quiet", "--fix-only", "--select=F401,I", path], check=True)
    subprocess.run([ruff, "format", "--quiet", path], check=True)


def start(root: Path, name: str) -> None:
    """Writes the files of a new pattern."""
    check_name(root, name)
    (old_chapter, old), (chapter, new) = ORIGINAL.split("/"), name.split("/")
    replacements = [(old, new), (old.replace("_", "-"), new.replace("_", "-"))]
    if chapter != old_chapter:
        replacements.insert(0, (old_chapter, chapter))
    for path in sorted(copies.tracked(root)):
        if not path.startswith(f"{ORIGINAL}/") or Path(path).name in MEASURED:
            continue
        copy, text = path.replace(ORIGINAL, name), (root / path).read_text("utf-8")
        if path == f"{ORIGINAL}/README.md":
            write(root / copy, draft(replaced(text, replacements), name))
        elif Path(path).name.startswith(("requirements", "sample.json")):
            write(root / copy, text)
        elif path == f"{ORIGINAL}/{PART_OF_THE_BOOK}":
            write(root / copy, f"# From the book to {new}\n\nThe book has no code for it.\n")
        else:
            copies.write_copy(root, path, copy, [pair for pair in replacements if pair[0] in text])
    module = root / test_module(name)
    tests = first_tests((root / test_module(ORIGINAL)).read_text("utf-8"))
    write(module, replaced(tests, replacements))
    tidy(module)
    add_to_chapter(root, name)


def add_to_chapter(root: Path, name: str) -> None:
    """Adds the pattern to the reading order of its chapter, whose first pattern it may be."""
    chapter, pattern = name.split("/")
    readme = root / chapter / "README.md"
    if not readme.exists():
        number, _, words = chapter.removeprefix("chapter").partition("_")
        write(readme, f"# Chapter {number}: {words.replace('_', ' ')}\n\n## In reading order\n\n")
        write(root / chapter / "Makefile", "include ../chapter.mk\n")
    text = readme.read_text("utf-8")
    items = re.search(r"(?:^\d+\. .*\n(?: .*\n)*)+", text, re.MULTILINE)
    listed, end = (items[0], items.end()) if items else ("", len(text))
    number_of_item = len(re.findall(r"^\d+\. ", listed, re.MULTILINE)) + 1
    item = f"{number_of_item}. [{pattern}]({pattern}): {tagline(root / name)}\n"
    write(readme, f"{text[:end]}{item}{text[end:]}")


def draft(readme: str, name: str) -> str:
    """Gives a README the title of the new pattern and adapts its relative links."""
    chapter, pattern = name.split("/")
    title = pattern.replace("_", " ").capitalize()
    readme = re.sub(r"\A# .*", f"# {title}", readme)
    old_chapter = ORIGINAL.split("/")[0]
    beside = r"\]\(\.\./(?!\.)"
    return readme if chapter == old_chapter else re.sub(beside, f"](../../{old_chapter}/", readme)


def replaced(text: str, replacements: copies.Replacements) -> str:
    for old, new in replacements:
        text = text.replace(old, new)
    return text


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="CHAPTER/NAME_pattern")
    name: str = parser.parse_args().name
    try:
        start(ROOT, name)
    except (NewError, copies.MarkError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    files.write(ROOT)
    print(NEXT.format(name=name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
