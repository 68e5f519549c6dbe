# Copied from chapter6_operation_management/shadow_ab_pattern/app/compare.py
"""Judges what two versions have answered by a rule; reads and writes nothing."""

from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel
from scipy.stats import binomtest

from .rule import Rule


class Pairs(BaseModel):
    """What the log says of the requests of a trial, each counted in one of the first seven."""

    # Both have predicted.
    pairs: int = 0
    # One has predicted, and the other has refused or failed.
    errors_of_live: int = 0
    errors_of_shadow: int = 0
    # Only one has a record.
    only_live: int = 0
    only_shadow: int = 0
    # Both have refused.
    refused: int = 0
    # One has several records with this ID, so nobody can tell which belong together.
    repeated: int = 0
    # Pairs with the same label for each row.
    agreeing: int = 0
    # How many rows had this label of the live version and that one of the shadow.
    labels: list[tuple[str, str, int]] = []
    live_p50_ms: float | None = None
    live_p99_ms: float | None = None
    shadow_p50_ms: float | None = None
    shadow_p99_ms: float | None = None
    # Pairs of one row whose true label an event tells, and which one of the two got right.
    only_live_right: int = 0
    only_shadow_right: int = 0


class Judgement(BaseModel):
    """The verdict and what it follows from; a share without a request is null."""

    verdict: Literal["go", "no-go", "wait", "void"]
    reasons: list[str]
    agreement: float | None = None
    # 95 %, by Wilson.
    agreement_low: float | None = None
    agreement_high: float | None = None
    error_share: float | None = None
    p99_ratio: float | None = None
    unpaired_share: float | None = None
    # Whether one version is right more often than the other, exact.
    mcnemar_p: float | None = None


def compare(pairs: Pairs, rule: Rule) -> Judgement:
    """Returns the verdict: `wait` until there are enough requests, then `go`, or why not."""
    unpaired = pairs.only_live + pairs.only_shadow
    judged = pairs.pairs + pairs.errors_of_shadow + unpaired
    found = Judgement(verdict="wait", reasons=[])
    if judged:
        found.error_share = pairs.errors_of_shadow / judged
        found.unpaired_share = unpaired / judged
    if pairs.pairs:
        agreement = binomtest(pairs.agreeing, pairs.pairs)
        interval = agreement.proportion_ci(method="wilson")
        found.agreement = float(agreement.statistic)
        found.agreement_low, found.agreement_high = float(interval.low), float(interval.high)
    if pairs.live_p99_ms and pairs.shadow_p99_ms:
        found.p99_ratio = pairs.shadow_p99_ms / pairs.live_p99_ms
    if differing := pairs.only_live_right + pairs.only_shadow_right:
        found.mcnemar_p = float(binomtest(pairs.only_shadow_right, differing).pvalue)
    if judged < rule.min_pairs:
        found.reasons = [f"{judged} of {rule.min_pairs} requests"]
    elif reasons := [*broken(found, rule, is_enough=pairs.pairs >= rule.min_pairs)]:
        found.verdict, found.reasons = "no-go", reasons
    elif pairs.pairs < rule.min_pairs:
        found.reasons = [f"{pairs.pairs} of {rule.min_pairs} pairs"]
    else:
        found.verdict = "go"
    return found


def broken(found: Judgement, rule: Rule, is_enough: bool) -> Iterator[str]:
    """Yields what is beyond a bound of the rule; what is seen in pairs only if they are enough."""
    low, ratio = found.agreement_low, found.p99_ratio
    if is_enough and low is not None and low < rule.agreement_at_least:
        yield f"agreement may be as low as {low:.4f}, less than {rule.agreement_at_least:g}"
    for what, share, most in (
        ("share of errors", found.error_share, rule.error_share_at_most),
        ("ratio of the 99th percentiles", ratio if is_enough else None, rule.p99_ratio_at_most),
        ("share of unpaired requests", found.unpaired_share, rule.unpaired_share_at_most),
    ):
        if share is not None and share > most:
            yield f"{what} is {share:.4g}, more than {most:g}"
