# Copied from chapter4_serving_patterns/web_single_pattern/app/docs.py
"""Serves `/docs` without the internet: Swagger UI's files come from an installed package."""

import fastapi_swagger
from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

# The browser itself refuses to load anything from another host.
POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:"


def add_docs(app: FastAPI) -> None:
    """Adds the page and its files, for an app without FastAPI's own pages, which need a CDN."""
    # Relative URLs, so that the page also works behind a proxy that adds a prefix.
    page = get_swagger_ui_html(
        title=app.title,
        openapi_url="openapi.json",
        swagger_js_url="docs/files/swagger-ui-bundle.js",
        swagger_css_url="docs/files/swagger-ui.css",
        swagger_favicon_url="docs/files/favicon-32x32.png",
    )
    page.headers["content-security-policy"] = POLICY

    async def docs(_: Request) -> HTMLResponse:
        return page

    app.add_route("/docs", docs, include_in_schema=False)
    app.mount("/docs/files", StaticFiles(packages=[(fastapi_swagger.__name__, "resources")]))
