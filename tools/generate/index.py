"""Writes the index of the patterns into the root README, and each README's measured figures."""

import re
from pathlib import Path

from tools.measure.results import PLOT_FILE, ResultsError, load
from tools.read.compose import load as load_compose
from tools.read.patterns import ROOT, patterns

HEADER = """
| pattern | what it is | processes | claim | measured |
| --- | --- | --- | --- | --- |
"""


class MarkerError(Exception):
    """A README is missing, or has no place for what is written into it."""


def between(text: str, name: str, content: str, shown: Path) -> str:
    """Returns the text with what stands between `<!-- name -->` and `<!-- /name -->` replaced."""
    marked = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if len(marked.findall(text)) != 1:
        raise MarkerError(f"{shown} has not exactly one <!-- {name} --> and <!-- /{name} -->")
    return marked.sub(lambda match: f"{match[1]}{content}{match[2]}", text)


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
    for name, value, _, target, verdict in results.rows():
        if target and name in results.figures:
            return results.claim, f"`{name}` {value} ({target}: {verdict})"
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


def figures(pattern: Path) -> str:
    """Returns what was measured of a pattern as a table; nothing before its first measurement."""
    try:
        results = load(pattern)
    except ResultsError:
        return ""
    lines = ["", "| | measured | without | target | |", "| --- | ---: | ---: | ---: | --- |"]
    lines += [f"| `{name}` | {' | '.join(cells)} |" for name, *cells in results.rows()]
    machine = results.machine
    lines += [
        "",
        f"Measured on {results.measured_on} with {machine['cores']} cores of {machine['cpu']}.",
    ]
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
        texts[path] = between(path.read_text("utf-8"), "results", figures(pattern), shown)
    return texts
