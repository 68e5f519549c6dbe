"""Shows the models with their champions and newest experiments as an HTML page."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import registry
from .capacity import ListSlot
from .database import Database, reading
from .foreign import OwnSite

MODELS_PER_PAGE = 20
EXPERIMENTS_PER_MODEL = 5
METRICS_PER_EXPERIMENT = 12

router = APIRouter()


def metrics_of(evaluations: dict[str, Any]) -> list[tuple[str, float]]:
    """Returns the first numeric evaluations with their names."""
    numbers = [
        (name, value)
        for name, value in evaluations.items()
        # A very large integer cannot be formatted as a float.
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    ]
    return numbers[:METRICS_PER_EXPERIMENT]


pages = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)
pages.filters["metrics"] = metrics_of
# The page loads nothing, so injected markup cannot load or run anything either.
PAGE_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


# For people, so it is not part of the OpenAPI document.
@router.get("/", include_in_schema=False, dependencies=[OwnSite, ListSlot])
def page(database: Database, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1) -> Response:
    with reading(database) as session:
        found = registry.overviews(
            session,
            limit=MODELS_PER_PAGE + 1,
            offset=MODELS_PER_PAGE * (page - 1),
            newest=EXPERIMENTS_PER_MODEL,
        )
    content = pages.get_template("page.html").render(
        overviews=found[:MODELS_PER_PAGE], page=page, has_next=len(found) > MODELS_PER_PAGE
    )
    return HTMLResponse(content, headers=PAGE_HEADERS)
