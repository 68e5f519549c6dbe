"""Measures the time of each test file and shows it against its budget at the end of a run.

A pytest plugin. CPU seconds are those of this process, of its running descendants, and of those
that have ended and were waited for. They exclude daemons that have left their parent (`make up`
without Docker starts one), children whose parent was killed before it waited for them, and
containers, which belong to the Docker engine.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from io import StringIO
from typing import Any, NamedTuple

import psutil
import pytest
from rich.console import Console
from rich.table import Table

from tools.measure.server import cpu_seconds_of


class Budget(NamedTuple):
    """The seconds that a row of the table may take; None means no limit."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None


# Budgets are only reported: a busy machine must not fail a run. A test marked `budget(name)` counts
# towards that row instead of its file's.
BUDGETS = {
    "tests of a pattern": Budget(cpu_seconds=40),
    "README": Budget(wall_seconds=25),
    # Excludes building the images.
    "README with Docker": Budget(wall_seconds=40),
    "measure --quick": Budget(wall_seconds=10),
    "slow": Budget(),
    "other tests": Budget(),
}
# Rows without a budget that take less are combined into one row.
LEAST_SECONDS = 1.0


class Row(NamedTuple):
    """Identifies a row of the table: the name of a budget, and what is measured."""

    kind: str
    name: str


class Used(NamedTuple):
    """Seconds used since some point in time."""

    wall: float
    cpu: float

    def since(self, begin: "Used") -> "Used":
        # The seconds of a killed child are lost, so the sum may decrease.
        return Used(self.wall - begin.wall, max(0.0, self.cpu - begin.cpu))


def row_of(item: pytest.Item) -> Row:
    file = item.nodeid.partition("::")[0].removeprefix("tests/")
    if mark := item.get_closest_marker("budget"):
        parameters = item.name.partition("[")[2].removesuffix("]")
        return Row(mark.args[0], parameters or file)
    if item.get_closest_marker("slow"):
        return Row("slow", file)
    return Row("tests of a pattern" if file.startswith("chapter") else "other tests", file)


def used() -> Used:
    process = psutil.Process()
    cpu = cpu_seconds_of(process)
    for child in process.children(recursive=True):
        # A child may end meanwhile; it counts once it has been waited for.
        with suppress(psutil.Error):
            cpu += cpu_seconds_of(child)
    return Used(time.monotonic(), cpu)


class Meter:
    """Adds up the seconds of each row, in this process and in pytest-xdist's workers."""

    def __init__(self) -> None:
        self.rows: dict[Row, Used] = {}
        self.begin: Used | None = None

    def add(self, row: Row, more: Used) -> None:
        sofar = self.rows.get(row, Used(0.0, 0.0))
        self.rows[row] = Used(sofar.wall + more.wall, sofar.cpu + more.cpu)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Iterator[None]:
        """Reads the clocks, which takes milliseconds, only where a row begins or ends."""
        row = row_of(item)
        if self.begin is None:
            self.begin = used()
        # This includes the teardown of module fixtures after the last test of a file.
        result = yield
        if nextitem is None or row_of(nextitem) != row:
            self.add(row, used().since(self.begin))
            self.begin = None
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        reported: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
        if reported is not None:
            reported["used"] = [[*row, *sum_] for row, sum_ in self.rows.items()]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Adds the measurements of a worker, unless it has crashed."""
        for kind, name, wall, cpu in getattr(node, "workeroutput", {}).get("used", []):
            self.add(Row(kind, name), Used(wall, cpu))

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if self.rows and config.get_verbosity() >= 0:
            terminalreporter.section("budgets")
            terminalreporter.write(table(self.rows, terminalreporter.hasmarkup))


def is_over(row: Row, sum_: Used) -> bool:
    bounds = BUDGETS[row.kind]
    return any(
        bound is not None and value > bound for value, bound in zip(sum_, bounds, strict=True)
    )


def table(rows: dict[Row, Used], coloured: bool) -> str:
    """Draws the rows, sorted by budget and name, and marks those over budget."""
    drawn = Table(box=None, pad_edge=False)
    for heading in ("budget", "of", "wall s", "CPU s", "at most", ""):
        numeric = heading in {"wall s", "CPU s"}
        drawn.add_column(heading, justify="right" if numeric else "left", no_wrap=True)
    order = list(BUDGETS)
    small = Used(0.0, 0.0)
    over = 0
    for row in sorted(rows, key=lambda row: (order.index(row.kind), row.name)):
        sum_, bounds = rows[row], BUDGETS[row.kind]
        if bounds == Budget() and max(sum_) < LEAST_SECONDS:
            small = Used(small.wall + sum_.wall, small.cpu + sum_.cpu)
            continue
        units = zip(bounds, ("wall", "CPU"), strict=True)
        bound = " ".join(f"{most:g} s {unit}" for most, unit in units if most is not None)
        over += is_over(row, sum_)
        mark = "[bold red]OVER[/]" if is_over(row, sum_) else ""
        drawn.add_row(row.kind, row.name, f"{sum_.wall:.1f}", f"{sum_.cpu:.1f}", bound, mark)
    if any(small):
        drawn.add_row("", "the rest", f"{small.wall:.1f}", f"{small.cpu:.1f}", "", "")
    total = Used(*map(sum, zip(*rows.values(), strict=True)))
    drawn.add_row("", "total", f"{total.wall:.1f}", f"{total.cpu:.1f}", "", f"{over} over")
    text = StringIO()
    Console(file=text, width=200, force_terminal=coloured, color_system="auto").print(drawn)
    return text.getvalue()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Meter(), "meter")
