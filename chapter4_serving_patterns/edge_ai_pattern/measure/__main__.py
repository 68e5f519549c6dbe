"""Measures the claim: a device answers without a network, and takes only a model that is right."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from tools.measure.results import Results, quick_argument

from .figures import FIGURE_TARGETS, measure_all
from .in_browser import count_in_browser
from .in_python import count_in_python
from .processes import stand_in

HERE = Path(__file__).parents[1]
CLAIM = "A device answers without a network, and takes only a model that is signed, new and right."


def main() -> int:
    arguments = quick_argument(__doc__)
    with TemporaryDirectory() as name:
        # Before the browser: a process with its threads must not fork.
        stand = stand_in(Path(name))
        with stand.publisher() as publisher:
            python = count_in_python(stand, publisher)
        with sync_playwright() as playwright:
            browser = count_in_browser(stand, playwright, quick=arguments.quick)
            picture = (arguments.directory(HERE) or Path(name)) / "page.png"
            figures = {} if arguments.quick else measure_all(stand, playwright, picture)
    counts, targets = python.counts | browser.counts, python.targets | browser.targets
    # What both count is added up.
    for name in python.counts.keys() & browser.counts:
        counts[name] = python.counts[name] + browser.counts[name]
        targets[name] = ("==", python.targets[name][1] + browser.targets[name][1])
    results = Results(
        pattern=HERE.name,
        claim=CLAIM,
        counts=counts,
        control=python.control | browser.control,
        figures=figures,
        targets=targets | (FIGURE_TARGETS if figures else {}),
        holds=all(counts[name] == bound for name, (_, bound) in targets.items()),
    )
    return results.finish(arguments, HERE)


if __name__ == "__main__":
    sys.exit(main())
