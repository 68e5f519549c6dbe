"""Lists the tests that failed and then passed, and fails a run that has too many of them.

A pytest plugin that complements pytest-rerunfailures, which runs a failed test once more.
"""

from typing import Any

import pytest

# A machine may have a bad moment, but more than this is no accident.
MOST_FLAKY = 2


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Turns reruns off under --pdb, because the two cannot be combined."""
    if config.getoption("usepdb"):
        config.option.reruns = 0


def flaky(config: pytest.Config) -> dict[str, str]:
    """Maps each test that passed on a rerun to the message of its first failure."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    stats = reporter.stats if reporter else {}
    failed = {report.nodeid for kind in ("failed", "error") for report in stats.get(kind, [])}
    first: dict[str, str] = {}
    for report in stats.get("rerun", []):
        if report.nodeid not in failed:
            first.setdefault(report.nodeid, message(report))
    return first


def message(report: pytest.TestReport) -> str:
    """Returns the phase of a test and the first line of its failure."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = (crash.message if crash else report.longreprtext).strip().splitlines()
    return f"{report.when}: {lines[0] if lines else 'no message'}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    too_many = len(flaky(session.config)) > MOST_FLAKY
    if too_many and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = flaky(config)
    if not found:
        return
    terminalreporter.section("flaky", yellow=True, bold=True)
    for nodeid, first in found.items():
        terminalreporter.line(f"{nodeid}\n    failed first: {first}")
    if len(found) > MOST_FLAKY:
        excess = f"{len(found)} tests are flaky, at most {MOST_FLAKY} may be: the run has failed"
        terminalreporter.line(excess, red=True, bold=True)
