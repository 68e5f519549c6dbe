"""Writes the index of the patterns into the root README, and each README's measured figures."""

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
# A reader takes in so many; results.json and RESULTS.md have the rest.
MOST_ROWS = 5
ROW = re.compile(r"\| (.+?) <!-- (\w+)(?: (\w+))? --> \|")


class MarkerError(Exception):
    """A README is missing, or has no place for what is written into it."""


def inside(text: str, name: str, shown: Path) -> str:
    """Returns what stands between `<!-- name -->` and `<!-- /name -->`."""
    found = re.findall(f"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if len(found) != 1:
        raise MarkerError(f"{shown} needs exactly one <!-- {name} --> and <!-- /{name} -->")
    return cast("str", found[0])


def between(text: str, name: str, content: str, shown: Path) -> str:
    """Returns the text with what stands between `<!-- name -->` and `<!-- /name -->` replaced."""
    opening = f"<!-- {name} -->\n"
    return text.replace(opening + inside(text, name, shown), opening + content, 1)


def tagline(pattern: Path) -> str:
    """Returns the third line of a pattern's README: one sentence under the title."""
    lines = (pattern / "README.md").read_text("utf-8").splitlines()
    return lines[2] if len(lines) > 2 else ""


def processes(pattern: Path) -> str:
    """Returns the services of a pattern, with how many of each there are."""
    services = sorted(load_compose(pattern, variables={}).services.values(), key=lambda s: s.name)
    return ", ".join(s.name if s.replicas == 1 else f"{s.replicas} {s.name}" for s in services)


def measured(pattern: Path) -> tuple[str, str]:
    """Returns the claim of a pattern, and the first figure that has a target."""
    try:
        results = load(pattern)
    except ResultsError:
        return "", "not measured yet"
    for name, value, _, target in results.rows():
        if target and name in results.figures:
            return results.claim, f"`{name}` {value} ({target})"
    return results.claim, ""


def index(root: Path) -> str:
    """Returns a table of the patterns for each chapter."""
    tables: dict[str, str] = {}
    for pattern in patterns(root):
        chapter = pattern.parent.name
        link = f"[{pattern.name}]({chapter}/{pattern.name})"
        cells = [link, tagline(pattern), processes(pattern), *measured(pattern)]
        row = f"| {' | '.join(cells)} |\n"
        tables[chapter] = tables.get(chapter, f"\n### {chapter}\n{HEADER}") + row
    return "".join(tables.values()) + "\n"


def figures(pattern: Path, block: str) -> str:
    """Returns the table of results of a README, its cells filled from what was measured.

    A row is `| jobs lost <!-- lost --> | | | |`: words for the reader, and the name of a count or
    figure. A second name says which figure is the same without the mechanism; a count that has a
    control needs none. The README chooses its rows and their order.

    Args:
        block: What stands in the README now.

    Raises:
        MarkerError: a row names what was not measured, or there are no rows, or too many.
    """
    named = [line for line in block.splitlines() if ROW.match(line)]
    if not 1 <= len(named) <= MOST_ROWS:
        raise MarkerError(
            f"{pattern.name}/README.md: {len(named)} rows of results; write one to {MOST_ROWS}, "
            "each as | words for it, unit <!-- name in results.json --> | | | |"
        )
    try:
        results = load(pattern)
    except ResultsError:
        results = None
    lines = ["", "| | measured | without | target |", "| --- | ---: | ---: | --- |"]
    for line in named:
        words, name, without = cast("re.Match[str]", ROW.match(line)).groups()
        for known in filter(None, [name, without]):
            if results and known not in results.measured:
                raise MarkerError(f"{pattern.name}/README.md: {known} is not in results.json")
        cells = results.cells(name, without) if results else ("", "", "")
        mark = f"{name} {without}" if without else name
        lines.append(f"| {words} <!-- {mark} --> | {' | '.join(cells)} |")
    if results:
        cores, cpu = results.machine["cores"], results.machine["cpu"]
        lines += ["", f"Measured on {results.measured_on} with {cores} cores of {cpu}."]
        if (pattern / PLOT_FILE).exists():
            lines += ["", f"![{results.claim}]({PLOT_FILE.as_posix()})"]
    return "\n".join([*lines, "", ""])


def indexed(root: Path = ROOT) -> dict[Path, str]:
    """Returns what the root README and each pattern's README should hold.

    Raises:
        MarkerError: a README is missing or has no place for it.
    """
    for pattern in patterns(root):
        for name in ("README.md", "docker-compose.yml"):
            if not (pattern / name).is_file():
                raise MarkerError(f"{pattern.relative_to(root)} has no {name}")
    readme = root / "README.md"
    shown = readme.relative_to(root)
    texts = {readme: between(readme.read_text("utf-8"), "index", index(root), shown)}
    for pattern in patterns(root):
        path = pattern / "README.md"
        shown = path.relative_to(root)
        text = path.read_text("utf-8")
        table = figures(pattern, inside(text, "results", shown))
        texts[path] = between(text, "results", table, shown)
    return texts
