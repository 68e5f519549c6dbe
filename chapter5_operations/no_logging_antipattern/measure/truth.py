"""Knows the true answers to the ten questions, and compares those of an operator with them."""

import json
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from ..app.incidents import INCIDENTS, Played, Receipt

Rows = list[dict[str, Any]]


def truth_of(played: Played) -> dict[str, Rows]:
    """Returns the true answers, from the plan and from what the callers have got."""
    receipts, start = played.receipts, played.start

    def at(second: float) -> datetime:
        return datetime.fromtimestamp(start + second, UTC)

    def span(some: Iterable[Receipt]) -> dict[str, datetime]:
        seconds = [one.call.second for one in some]
        return {"since": at(min(seconds)), "until": at(max(seconds))}

    names = [played.usual, played.other]
    failed = sum(one.status >= 400 for one in receipts)
    answered = [one for one in receipts if one.label]
    inches = [one for one in receipts if one.call.is_in_inches]
    repeated = [one for one in receipts if one.call.is_repeated]
    first, last = INCIDENTS["burst"]
    burst = [one for one in receipts if one.status == 500 and first <= one.call.second // 60 < last]
    gone_at = INCIDENTS["class_gone"][0] * 60
    virginica = [
        one.call.second
        for one in answered
        if one.label == "virginica" and one.call.second < gone_at
    ]
    wrong = next(one for one in answered if one.call.is_other_model and one.label != one.call.label)
    by_replica, by_model, by_caller = (defaultdict[Any, list[Receipt]](list) for _ in range(3))
    for one in receipts:
        by_replica[one.call.replica, names[one.call.is_other_model]].append(one)
    for one in answered:
        if one.call.has_outcome:
            by_model[names[one.call.is_other_model]].append(one)
        if one.call.is_other_model or one.call.is_in_inches:
            by_caller[one.call.caller].append(one)
    return {
        "failed": [
            {
                "requests": len(receipts),
                "failed": failed,
                "share": round(failed / len(receipts), 4),
            }
        ],
        "p99_step": [{"since": at(INCIDENTS["p99_step"][0] * 60)}],
        "other_unit": [{"caller": "museum", **span(inches), "requests": len(inches)}],
        "class_gone": [{"label": "virginica", "last": at(max(virginica))}],
        "models": [
            {"replica": replica, "model": model, **span(some), "requests": len(some)}
            for (replica, model), some in sorted(by_replica.items())
        ],
        "job": [
            {
                "id": wrong.job_id,
                "at": at(wrong.call.second),
                "caller": wrong.call.caller,
                "replica": wrong.call.replica,
                "model": names[1],
                "status": 200,
                "rows": [wrong.call.row],
                "labels": [wrong.label],
            }
        ],
        "repeats": [{"caller": "shop", **span(repeated), "requests": len(repeated)}],
        "burst": [{**span(burst), "failed": len(burst)}],
        "accuracy": [
            {
                "model": model,
                "outcomes": len(some),
                "accuracy": round(sum(one.label == one.call.label for one in some) / len(some), 4),
            }
            for model, some in sorted(by_model.items())
        ],
        "to_correct": [
            {
                "caller": caller,
                "answers": len(some),
                "ids": sorted(one.job_id or "" for one in some),
            }
            for caller, some in sorted(by_caller.items())
        ],
    }


def is_right(answer: Any, truth: Rows) -> bool:
    """Tells whether an answer, as it is in JSON, has the same rows; it may have more columns."""
    wanted = json.loads(to_json(truth))
    return len(answer) == len(wanted) and all(
        isinstance(row, dict) and row | one == row for row, one in zip(answer, wanted, strict=True)
    )
