"""Judges the newest models of both versions by the rule."""

from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from .compare import Judgement, Pairs, compare
from .pairs import find_trial, join, keep_rule
from .rule import Rule
from .settings import Settings
from .written import WrittenError, read


class Report(Judgement):
    """The verdict on the newest models, and by which rule; without both there is no trial."""

    live_model: str | None = None
    shadow_model: str | None = None
    began: datetime | None = None
    rule: Rule | None = None
    rule_sha256: str | None = None
    rule_seen: datetime | None = None
    counts: Pairs = Pairs()


def refuse_wrong(settings: Settings) -> None:
    """Raises an error if the rule is missing or wrong."""
    read(settings.rule_file, Rule)


def notice(connection: Connection, settings: Settings) -> None:
    """Stores when a new rule was first seen, if nobody asks for the report meanwhile."""
    with suppress(WrittenError):
        keep_rule(connection, read(settings.rule_file, Rule)[1])


def judge(connection: Connection, settings: Settings) -> Report:
    """Judges the newest models; a rule that came after their first pair makes that void."""
    try:
        written, digest = read(settings.rule_file, Rule)
    except WrittenError as error:
        return Report(verdict="void", reasons=[str(error)])
    seen = keep_rule(connection, digest)
    by: dict[str, Any] = {"rule": written, "rule_sha256": digest, "rule_seen": seen}
    trial = find_trial(connection, settings)
    if trial is None:
        return Report(verdict="wait", reasons=["no request has reached both versions"], **by)
    counts = join(connection, trial, settings.settle_seconds)
    judgement = compare(counts, written)
    if seen > trial["began"]:
        reason = (
            f"the rule is younger than the first pair: {seen:%F %T} after {trial['began']:%F %T}"
        )
        judgement = judgement.model_copy(update={"verdict": "void", "reasons": [reason]})
    return Report(**judgement.model_dump(), **by, **trial, counts=counts)
