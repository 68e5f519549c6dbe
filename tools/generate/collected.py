"""Writes RESULTS.md: the results of all patterns, in words."""

from pathlib import Path

from tools.generate.readme import link, rows
from tools.measure.results import PLOT_FILE, RESULTS_FILE, Results, ResultsError, load

INTRODUCTION = """# Results

The claim of each pattern and its measured results, in words with their units. *Without* is the same
measurement with the pattern's mechanism switched off: it shows what the mechanism does. The last
column is the name in `measure/results.json`.

Run `make measure` in a pattern to measure it, or `make results` to measure all of them. This file
is generated; do not edit it.
"""
HEADER = """| | measured | without | target | name |
| --- | ---: | ---: | --- | --- |"""


def page(root: Path) -> str:
    """Returns the text of RESULTS.md."""
    found = {
        path.parents[1]: load(path.parents[1])
        for path in sorted(root.glob(f"chapter*/*/{RESULTS_FILE}"))
    }
    for pattern, results in found.items():
        if results.pattern != pattern.name:
            raise ResultsError(f"{pattern.name}: pattern is {results.pattern!r}")
    if not found:
        raise ResultsError(f"no chapter*/*/{RESULTS_FILE} found: run make measure in a pattern")
    unmeasured = [
        path.parents[1]
        for path in sorted(root.glob("chapter*/*/measure/__main__.py"))
        if path.parents[1] not in found
    ]
    failures = [f"- {link(pattern)}: not measured yet" for pattern in unmeasured]
    for pattern, results in found.items():
        if not results.holds:
            failures.append(f"- {link(pattern)}: **the claim does not hold**")
        failures += [
            f"- {link(pattern)}: {row.words}: {results.cells(row.name)[0]}, "
            f"target {results.cells(row.name)[2].removesuffix(': missed')}"
            for row in rows(pattern)
            if results.verdict(row.name) == "missed"
        ]
    missed = ["## Missed\n", *(failures or ["None: every claim holds, every target is met."])]
    sections = [section(pattern, results) for pattern, results in found.items()]
    return "\n".join([INTRODUCTION, *missed, *sections])


def section(pattern: Path, results: Results) -> str:
    verdict = "The claim holds" if results.holds else "**The claim does not hold**"
    machine = ", ".join(f"{key} {value}" for key, value in results.machine.items())
    lines = [
        f"\n## {link(pattern)}\n",
        f"{results.claim}\n",
        f"{verdict}; measured on {results.measured_on}: {machine}.\n",
        HEADER,
        *(
            f"| {row.words} | {' | '.join(results.cells(row.name, row.without))} | `{row.name}` |"
            for row in rows(pattern)
        ),
    ]
    if (pattern / PLOT_FILE).exists():
        plot = f"{pattern.parent.name}/{pattern.name}/{PLOT_FILE.as_posix()}"
        lines.append(f"\n![Results of {pattern.name}]({plot})")
    return "\n".join(lines) + "\n"
