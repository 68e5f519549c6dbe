"""Judges the experiment that runs: at its planned size, unless something is wrong with it."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel
from sqlalchemy import Connection, select

from .decide import MISMATCH, always_valid, effect, ratio_mismatch
from .experiment import Experiment
from .outcomes import Counts, count
from .runs import last, runs
from .settings import Settings
from .written import WrittenError, read


class Report(BaseModel):
    """The verdict on the new version, and what it follows from."""

    verdict: Literal["go", "no-go", "wait", "void", "stopped"]
    reasons: list[str]
    experiment: Experiment | None = None
    began: datetime | None = None
    # How many users of each version the test needs.
    planned: tuple[int, int] | None = None
    # How likely chance alone splits the users like this.
    mismatch_p: float | None = None
    # The fixed test, which is there only at the planned size.
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    # What may be looked at all the time.
    watched_low: float | None = None
    watched_high: float | None = None
    counts: Counts = Counts()


def refuse_wrong(settings: Settings) -> None:
    """Raises an error if the experiment is missing or wrong."""
    read(settings.experiment_file, Experiment)


def notice(connection: Connection, _: Settings) -> None:
    """Raises an error as long as the switch has not created its table."""
    connection.execute(select(runs).limit(1))


def judge(connection: Connection, settings: Settings) -> Report:
    """Judges the run of the experiment that is written in the file."""
    try:
        experiment, digest = read(settings.experiment_file, Experiment)
    except WrittenError as error:
        return Report(verdict="void", reasons=[str(error)])
    run = last(connection)
    if run is None or run.digest != digest:
        reason = "the experiment is not running yet; the switch begins it"
        return Report(verdict="wait", reasons=[reason], experiment=experiment)
    counts = count(connection, run, experiment, settings.settle_seconds)
    report = Report(
        verdict="wait",
        reasons=[],
        experiment=experiment,
        began=run.began,
        planned=experiment.planned,
        mismatch_p=float(ratio_mismatch(counts.users, experiment.weights)),
        counts=counts,
    )
    add_effect(report, experiment)
    if run.stopped:
        report.verdict, report.reasons = "stopped", [str(run.reason)]
    elif faults := [*faults_of(report, experiment)]:
        report.verdict, report.reasons = "void", faults
    else:
        report.verdict, report.reasons = verdict_of(report, experiment)
    return report


def add_effect(report: Report, experiment: Experiment) -> None:
    """Adds the interval that may be watched and, at the planned size, the test."""
    counts, planned = report.counts, experiment.planned
    watched = always_valid(counts.watched_successes, counts.watched, sum(planned), experiment.alpha)
    report.watched_low, report.watched_high = float(watched.low), float(watched.high)
    if found := effect(counts.judged_successes, counts.judged, planned, experiment.alpha):
        report.difference, report.difference_low, report.difference_high, report.p_value = (
            float(value) for value in found
        )


def faults_of(report: Report, experiment: Experiment) -> Iterator[str]:
    """Yields why the numbers say nothing about the versions."""
    counts, arms = report.counts, (experiment.arms.a, experiment.arms.b)
    if counts.users_of_both:
        yield f"{counts.users_of_both} users have had answers of both versions"
    if report.mismatch_p is not None and report.mismatch_p < MISMATCH:
        (a, b), (of_a, of_b) = counts.users, experiment.weights
        yield (
            f"ratio mismatch: {a} users of {arms[0]} and {b} of {arms[1]} are not {of_a} to {of_b} "
            f"(p = {report.mismatch_p:.2g})"
        )
    for arm, models in zip(arms, counts.models, strict=True):
        if len(models) > 1:
            yield f"{arm} has had {len(models)} models: {', '.join(models)}"
    for model in sorted(set(counts.models[0]) & set(counts.models[1])):
        yield f"both versions have the model {model}"


def verdict_of(report: Report, experiment: Experiment) -> tuple[Any, list[str]]:
    """Returns the verdict on numbers that are right, and why."""
    counts, arms = report.counts, (experiment.arms.a, experiment.arms.b)
    if report.difference is None or report.p_value is None:
        parts = zip(counts.judged, experiment.planned, arms, strict=True)
        return "wait", [
            " and ".join(f"{have} of {need} users of {arm}" for have, need, arm in parts)
        ]
    found = (
        f"{report.difference:+.3f} ({report.difference_low:+.3f} to {report.difference_high:+.3f})"
    )
    if report.p_value >= experiment.alpha:
        return "no-go", [f"no effect beyond chance: {found}, p = {report.p_value:.2g}"]
    if report.difference < 0:
        return "no-go", [f"{arms[1]} is worse: {found}, p = {report.p_value:.2g}"]
    return "go", [f"{arms[1]} is better: {found}, p = {report.p_value:.2g}"]
