"""Writes what is collected from the patterns into Markdown files.

These are the index in the root README, the sections of COMING_FROM_THE_BOOK.md, and the measured
figures in each pattern's README.
"""

from pathlib import Path

from tools.generate.choosing import need
from tools.generate.readme import (
    MarkerError,
    between,
    counted,
    inside,
    link,
    points,
    rows_of,
    tagline,
)
from tools.measure.results import PLOT_FILE, ResultsError, load
from tools.read.patterns import ROOT, patterns

HEADER = """
| pattern | what it is | use it when | measured |
| --- | --- | --- | --- |
"""
EXPLANATION = """
[CHOOSING.md](CHOOSING.md) leads from what you need to a pattern, and says what it costs.

*Measured* is what the pattern's claim counts and, in brackets, the same count without the pattern's
mechanism.
"""
# A pattern's part of the second file is in the first.
PART_OF_THE_BOOK = "BOOK.md"
COMING_FROM_THE_BOOK = "COMING_FROM_THE_BOOK.md"
# More rows are hard to take in; results.json and RESULTS.md have the rest.
MOST_ROWS = 5


def index(root: Path) -> str:
    """Returns one table of patterns for each chapter."""
    tables: dict[str, str] = {}
    for pattern in patterns(root):
        chapter = pattern.parent.name
        first, *_ = [*points(pattern, "When to use it"), ""]
        cells = [link(pattern), tagline(pattern), need(first)[0], counted(pattern)]
        row = f"| {' | '.join(cells)} |\n"
        tables[chapter] = tables.get(chapter, f"\n### {chapter}\n{HEADER}") + row
    return EXPLANATION + "".join(tables.values()) + "\n"


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
    rows = rows_of(block)
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
    for words, name, without in rows:
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
    for pattern in patterns(root):
        path = pattern / "README.md"
        shown = path.relative_to(root)
        text = path.read_text("utf-8")
        table = figures(pattern, inside(text, "results", shown))
        texts[path] = between(text, "results", table, shown)
    for name, marker, content in (
        ("README.md", "index", index(root)),
        (COMING_FROM_THE_BOOK, "book", from_the_book(root)),
    ):
        text = (root / name).read_text("utf-8")
        texts[root / name] = between(text, marker, content, Path(name))
    return texts
