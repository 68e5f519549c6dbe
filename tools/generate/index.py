"""Writes what is collected from the patterns into Markdown files.

These are the index in the root README, the sections of COMING_FROM_THE_BOOK.md, and the measured
figures in each pattern's README.
"""

import re
from pathlib import Path
from typing import cast

from tools.measure.results import PLOT_FILE, ResultsError, load
from tools.read.compose import load as load_compose
from tools.read.patterns import ROOT, patterns

HEADER = """
| pattern | what it is | processes | claim | measured |
| --- | --- | --- | --- | --- |
"""
# A pattern's part of the second file is in the first.
PART_OF_THE_BOOK = "BOOK.md"
COMING_FROM_THE_BOOK = "COMING_FROM_THE_BOOK.md"
# More rows are hard to take in; results.json and RESULTS.md have the rest.
MOST_ROWS = 5
ROW = re.compile(r"\| (.+?) <!-- (\w+)(?: (\w+))? --> \|")


class MarkerError(Exception):
    """A README is missing, or has no place for the generated text."""


def inside(text: str, name: str, shown: Path) -> str:
    """Returns the text between `<!-- name -->` and `<!-- /name -->`."""
    found = re.findall(f"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if len(found) != 1:
        raise MarkerError(f"{shown} needs exactly one <!-- {name} --> and <!-- /{name} -->")
    return cast("str", found[0])


def between(text: str, name: str, content: str, shown: Path) -> str:
    """Replaces the text between `<!-- name -->` and `<!-- /name -->`."""
    opening = f"<!-- {name} -->\n"
    return text.replace(opening + inside(text, name, shown), opening + content, 1)


def tagline(pattern: Path) -> str:
    """Returns the third line of a pattern's README."""
    lines = (pattern / "README.md").read_text("utf-8").splitlines()
    return lines[2] if len(lines) > 2 else ""


def processes(pattern: Path) -> str:
    """Returns the services of a pattern, with the number of replicas."""
    services = sorted(load_compose(pattern, variables={}).services.values(), key=lambda s: s.name)
    return ", ".join(s.name if s.replicas == 1 else f"{s.replicas} {s.name}" for s in services)


def measured(pattern: Path) -> tuple[str, str]:
    """Returns the claim of a pattern and its first figure with a target."""
    try:
        results = load(pattern)
    except ResultsError:
        return "", "not measured yet"
    for name, value, _, target in results.rows():
        if target and name in results.figures:
            return results.claim, f"`{name}` {value} ({target})"
    return results.claim, ""


def index(root: Path) -> str:
    """Returns one table of patterns for each chapter."""
    tables: dict[str, str] = {}
    for pattern in patterns(root):
        chapter = pattern.parent.name
        link = f"[{pattern.name}]({chapter}/{pattern.name})"
        cells = [link, tagline(pattern), processes(pattern), *measured(pattern)]
        row = f"| {' | '.join(cells)} |\n"
        tables[chapter] = tables.get(chapter, f"\n### {chapter}\n{HEADER}") + row
    return "".join(tables.values()) + "\n"


def from_the_book(root: Path) -> str:
    """Returns a section for each pattern: its BOOK.md with another title."""
    sections = []
    for pattern in patterns(root):
        name = pattern.relative_to(root).as_posix()
        _, _, text = (pattern / PART_OF_THE_BOOK).read_text("utf-8").partition("\n\n")
        sections.append(f"\n## [{name}]({name})\n\n{text}")
    return "".join(sections) + "\n"


def figures(pattern: Path, block: str) -> str:
    """Fills in the results table of a README from results.json.

    The README chooses its rows: `| jobs lost <!-- lost --> | | | |` has a description and the name
    of a count or figure. A second name in the comment is the figure without the mechanism; a count
    with a control does not need one. `block` is the current text of the table.
    """
    rows = [row for line in block.splitlines() if (row := ROW.match(line))]
    if not 1 <= len(rows) <= MOST_ROWS:
        raise MarkerError(
            f"{pattern.name}/README.md: {len(rows)} rows of results; write 1 to {MOST_ROWS}, "
            "each as | description, unit <!-- name in results.json --> | | | |"
        )
    try:
        results = load(pattern)
    except ResultsError:
        results = None
    lines = ["", "| | measured | without | target |", "| --- | ---: | ---: | --- |"]
    for row in rows:
        words, name, without = row.groups()
        names = [name, without] if without else [name]
        unknown = [each for each in names if results and each not in results.measured]
        # A quick measurement has counts only, so the rows of figures stay empty after it.
        if unknown and results and results.figures:
            raise MarkerError(f"{pattern.name}/README.md: {unknown[0]} is not in results.json")
        cells = results.cells(name, without) if results and not unknown else ("", "", "")
        lines.append(f"| {words} <!-- {' '.join(names)} --> | {' | '.join(cells)} |")
    if results:
        cores, cpu = results.machine["cores"], results.machine["cpu"]
        lines += ["", f"Measured on {results.measured_on} with {cores} cores of {cpu}."]
        if (pattern / PLOT_FILE).exists():
            lines += ["", f"![{results.claim}]({PLOT_FILE.as_posix()})"]
    return "\n".join([*lines, "", ""])


def indexed(root: Path = ROOT) -> dict[Path, str]:
    """Returns the text that each of these files should have."""
    for pattern in patterns(root):
        for name in ("README.md", "docker-compose.yml", PART_OF_THE_BOOK):
            if not (pattern / name).is_file():
                raise MarkerError(f"{pattern.relative_to(root)} has no {name}")
    texts = {}
    collected = {"README.md": ("index", index), COMING_FROM_THE_BOOK: ("book", from_the_book)}
    for file, (marker, content) in collected.items():
        text = (root / file).read_text("utf-8")
        texts[root / file] = between(text, marker, content(root), Path(file))
    for pattern in patterns(root):
        path = pattern / "README.md"
        shown = path.relative_to(root)
        text = path.read_text("utf-8")
        table = figures(pattern, inside(text, "results", shown))
        texts[path] = between(text, "results", table, shown)
    return texts
