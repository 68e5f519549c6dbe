"""Renders the page: checks, windows, features and incidents."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlalchemy import Connection

from . import baseline, incidents, windows
from .judge import ALPHA, Sample

SHOWN_WINDOWS = 60
# The page loads nothing, so injected markup cannot load or run anything either.
HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}

environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)


def render(connection: Connection) -> str:
    """Returns the page as HTML."""
    found = windows.newest(connection, SHOWN_WINDOWS)
    models = [
        overview(model, judged, baseline.find(connection, model)) for model, judged in found.items()
    ]
    return environment.get_template("page.html").render(
        models=models, incidents=incidents.newest(connection), now=datetime.now(UTC), alpha=ALPHA
    )


def overview(
    model: str, judged: list[Any], taken: tuple[datetime, Sample] | None
) -> dict[str, Any]:
    """Returns what the page shows of a model."""
    last = judged[0]
    speak = windows.speaking_in(judged)
    p_values: dict[str, list[float | None]] = {}
    for window in reversed(judged):
        for check in windows.checks_of(window):
            p_values.setdefault(check.name, []).append(check.p_value)
    return {
        "model": model,
        "last": last,
        "checks": [
            (each, windows.state_of(each, speak), p_values[each.name])
            for each in windows.checks_of(last)
        ],
        "features": [*zip(windows.deciles(taken[1]), last.deciles, strict=False)] if taken else [],
    }


def height(p_value: float) -> float:
    """Returns where a p-value is drawn, from 0 for 1 to 40 for a billionth and less."""
    return min(40.0, -math.log10(max(p_value, 1e-9)) * 40 / 9)


environment.filters["height"] = height
