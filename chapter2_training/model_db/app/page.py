"""Shows the models with their champions and newest experiments, as a page for people."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import registry
from .capacity import OneOfFew
from .database import Database, reading

MODELS_A_PAGE = 20
EXPERIMENTS_A_MODEL = 5
METRICS_AN_EXPERIMENT = 12

router = APIRouter()


def metrics_of(evaluations: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns the first evaluations that are numbers, with their names."""
    numbers = [
        (name, value)
        for name, value in evaluations.items()
        # An integer may be too large to be written as 1.5e+10.
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    ]
    return numbers[:METRICS_AN_EXPERIMENT]


pages = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)
pages.filters["metrics"] = metrics_of
# The page needs nothing from anywhere, so that what somebody smuggles into it does nothing either.
PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


# For people, so it is no part of what is described to programs.
@router.get("/", include_in_schema=False, dependencies=[OneOfFew])
def page(database: Database, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1) -> Response:
    """Shows every model with its champion and its newest experiments."""
    with reading(database) as session:
        found = registry.overviews(
            session,
            limit=MODELS_A_PAGE + 1,
            offset=MODELS_A_PAGE * (page - 1),
            newest=EXPERIMENTS_A_MODEL,
        )
    content = pages.get_template("page.html").render(
        overviews=found[:MODELS_A_PAGE], page=page, has_next=len(found) > MODELS_A_PAGE
    )
    return HTMLResponse(content, headers=PAGE_HEADERS)
