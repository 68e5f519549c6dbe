"""Reads from each pattern's README what other generated pages repeat."""

import re
from pathlib import Path
from posixpath import normpath
from typing import NamedTuple, cast

import yaml

from tools.measure.results import ResultsError, load
from tools.read.compose import load as load_compose
from tools.read.strict_yaml import documents_of

# Relative to a pattern's directory; it describes the results that README.md leaves out.
WORDS_FILE = Path("measure/words.yml")
ROW = re.compile(r"\| (.+?) <!-- (\w+)(?: (\w+))? --> \|")
# The unit that the words of a result must name, by the end of the result's name.
UNITS = {
    "_kilobytes": "(kB)",
    "_mb": "(MB)",
    "_ms": "(ms)",
    "_per_second": "per second",
    "_percent": "(%)",
    "_seconds": "(s)",
    "_us": "(µs)",
}


class MarkerError(Exception):
    """A README is missing, or has no place for the generated text."""


class Row(NamedTuple):
    """A count or figure in words, and the name of the same without the mechanism, if it has one."""

    words: str
    name: str
    without: str | None


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


def shown(pattern: Path) -> Path:
    """Returns the path of a pattern's README for a message."""
    return Path(pattern.parent.name, pattern.name, "README.md")


def text_of(pattern: Path) -> str:
    return (pattern / "README.md").read_text("utf-8")


def link(pattern: Path) -> str:
    """Returns a link to a pattern from the root of the repository."""
    return f"[{pattern.name}]({pattern.parent.name}/{pattern.name})"


def tagline(pattern: Path) -> str:
    """Returns the third line of a pattern's README."""
    lines = text_of(pattern).splitlines()
    return lines[2] if len(lines) > 2 else ""


def points(pattern: Path, heading: str) -> list[str]:
    """Returns the list under a heading, a line for each point, with links from the root."""
    _, _, section = text_of(pattern).partition(f"\n## {heading}\n")
    found = re.findall(r"^- (.+(?:\n  .+)*)", section.partition("\n## ")[0], re.MULTILINE)
    here = f"{pattern.parent.name}/{pattern.name}"

    def from_root(target: re.Match[str]) -> str:
        return f"]({normpath(f'{here}/{target[1]}')})"

    # A bar would end the cell of a table.
    joined = (" ".join(point.split()).replace("|", "\\|") for point in found)
    return [re.sub(r"\]\((?![a-z]+:)([^)]+)\)", from_root, point) for point in joined]


def processes(pattern: Path) -> str:
    """Returns the services of a pattern, with the number of replicas, and the jobs at the end."""
    services = sorted(load_compose(pattern, variables={}).services.values(), key=lambda s: s.name)
    started = [s for s in services if not s.profiles]
    names = [s.name if s.replicas == 1 else f"{s.replicas} {s.name}" for s in started]
    return ", ".join([*names, *(f"{s.name} on demand" for s in services if s.profiles)])


def rows_of(block: str) -> list[Row]:
    """Returns the rows of results that a README has chosen."""
    return [Row(*row.groups()) for line in block.splitlines() if (row := ROW.match(line))]


def chosen(pattern: Path) -> list[Row]:
    return rows_of(inside(text_of(pattern), "results", shown(pattern)))


def described(pattern: Path) -> list[Row]:
    """Returns the rows of README.md, and after them those of measure/words.yml."""
    path = pattern / WORDS_FILE
    found = chosen(pattern)
    try:
        documents = documents_of(path.read_text("utf-8")) if path.exists() else []
    except yaml.YAMLError as error:
        raise MarkerError(f"{pattern.name}/{WORDS_FILE.as_posix()}: {error}") from None
    for document in documents:
        items = document.items() if isinstance(document, dict) else [("", document)]
        for names, words in items:
            name, _, without = str(names).partition(" ")
            if not (name and isinstance(words, str)):
                raise MarkerError(
                    f"{pattern.name}/{WORDS_FILE.as_posix()}: {words!r} is not what a result is; "
                    "write NAME: WORDS"
                )
            found.append(Row(words, name, without or None))
    return found


def rows(pattern: Path) -> list[Row]:
    """Returns every result of a pattern in words; a result without words is an error."""
    results = load(pattern)
    known = {*results.measured, None}
    found = [row for row in described(pattern) if {row.name, row.without} <= known]
    named = {name for row in found for name in (row.name, row.without)}
    for name in results.measured:
        if name not in named:
            raise MarkerError(
                f"{pattern.name}/{WORDS_FILE.as_posix()} does not say what {name} is; add a line"
            )
    for row in found:
        for end, unit in UNITS.items():
            if row.name.endswith(end) and unit not in row.words:
                raise MarkerError(f'{pattern.name}: "{row.words}" is {row.name}; add {unit}')
    return found


def counted(pattern: Path) -> str:
    """Returns what the claim counts, with and without the mechanism.

    That is the first row of the README's results with a control.
    """
    try:
        results = load(pattern)
    except ResultsError:
        return "not measured yet"
    for words, name, _ in chosen(pattern):
        if name in results.control:
            value, without, _ = results.cells(name)
            return f"{words}: {value} ({without} without)"
    raise MarkerError(f"{shown(pattern)}: no row of the results is a count with a control; add it")
