"""Writes CHOOSING.md: which pattern serves which need, and what it costs.

The needs are the points under "When to use it" in the READMEs. Each ends with a mark such as
`<!-- need: load -->`, which names the question that it answers.
"""

import re
from pathlib import Path

from tools.generate.readme import (
    MarkerError,
    Row,
    chosen,
    counted,
    link,
    points,
    processes,
    rows,
    shown,
)
from tools.measure.results import Results, ResultsError, load
from tools.read.patterns import patterns

INTRODUCTION = """# Choosing a pattern

Start with the question that decides your architecture, and find your answer below it. Then see when
a pattern stops fitting, and compare what each one costs. *Without* is the same measurement without
the pattern's mechanism. {machines} Other machines give other times; the counts stay.
[RESULTS.md](RESULTS.md) has all figures.

This file is generated from the patterns' READMEs and measurements; do not edit it.
"""
# In the order in which an architecture is decided.
QUESTIONS = {
    "start": "How much do you want to build and run?",
    "caller": "Does the caller wait for the prediction, and how long?",
    "load": "What happens when more requests arrive than the servers can handle?",
    "failure": "What may fail, and what must keep working?",
    "models": "Do you have more than one model?",
    "release": "How does a model reach its server, and how many bytes does an update move?",
    "trust": "Who has to know where a model comes from?",
    "training": "How long does training take, and how often is it repeated?",
    "data": "What do the data look like?",
}
NEED = re.compile(r"(.*?)(?: <!-- need: (\w+) -->)?")
# The names of figures that are prices: the one that matters most for a question, and any.
PRICES = {"start": r".*_mb", "caller": r".*p99_ms", "release": r"(.*_)?bytes_.*"}
PRICE = r".*(_us|_ms|_seconds|_mb|_kilobytes)|(.*_)?bytes_.*"


def need(point: str) -> tuple[str, str | None]:
    """Separates a point under "When to use it" from the question that it answers."""
    found = NEED.fullmatch(point)
    return (found[1], found[2]) if found else (point, None)


def needs(pattern: Path) -> list[tuple[str, str]]:
    """Returns each need that a pattern serves, with its question."""
    found = []
    for point in points(pattern, "When to use it"):
        words, question = need(point)
        if question not in QUESTIONS:
            raise MarkerError(
                f'{shown(pattern)}: end "{words}" with <!-- need: QUESTION -->, '
                f"one of {', '.join(QUESTIONS)}"
            )
        found.append((words, question))
    return found


def measured(row: Row, results: Results) -> str:
    value, without, _ = results.cells(row.name, row.without)
    return f"{row.words}: {value}" + (f" ({without} without)" if without else "")


def price(pattern: Path, question: str) -> str:
    """Returns the first figure of a pattern that is a price for this question, or any price."""
    try:
        results = load(pattern)
    except ResultsError:
        return "not measured yet"
    for prices in (PRICES.get(question, PRICE), PRICE):
        for row in rows(pattern):
            if re.fullmatch(prices, row.name):
                return measured(row, results)
    return ""


def comparison(pattern: Path) -> list[str]:
    """Returns the processes of a pattern, its results and its first trade-off."""
    try:
        results = load(pattern)
    except ResultsError:
        figures = counted(pattern)
    else:
        found = [row for row in chosen(pattern) if row.name in results.measured]
        figures = "<br>".join(measured(row, results) for row in found)
    first, *_ = [*points(pattern, "Trade-offs"), ""]
    return [processes(pattern), figures, first]


def table(*columns: str) -> str:
    return f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def page(root: Path) -> str:
    """Returns the text of CHOOSING.md."""
    found = patterns(root)
    by_question: dict[str, list[str]] = {question: [] for question in QUESTIONS}
    for pattern in found:
        for words, question in needs(pattern):
            by_question[question].append(
                line(words, link(pattern), processes(pattern), price(pattern, question))
            )
    machines = set()
    for pattern in found:
        try:
            results = load(pattern)
        except ResultsError:
            continue
        cores, cpu = results.machine["cores"], results.machine["cpu"]
        machines.add(f"Measured on {results.measured_on} with {cores} cores of {cpu}.")
    parts = [INTRODUCTION.format(machines=" ".join(sorted(machines)))]
    for question, lines in by_question.items():
        if lines:
            header = table("you need", "use", "you run", "it costs, measured")
            parts += [f"\n## {QUESTIONS[question]}\n", header, *lines]
    parts += ["\n## When a pattern stops fitting\n", table("from", "when, and where to go")]
    for pattern in found:
        parts += [line(link(pattern), point) for point in points(pattern, "Not when")]
    header = table("pattern", "you run", "measured", "the first trade-off")
    parts += ["\n## What each pattern costs\n", header]
    parts += [line(link(pattern), *comparison(pattern)) for pattern in found]
    return "".join(parts)
