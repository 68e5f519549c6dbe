"""The pages for people, as a browser without the internet shows them."""

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import PATIENCE_MILLISECONDS, needs_browser, run_browser
from tools.measure.servers import run_uvicorn
from tools.measure.services import copy_of, run_service
from tools.read.patterns import ROOT

pytestmark = needs_browser

# Counts the lines of an element's text.
LINES = """element => {
  const range = document.createRange();
  range.selectNodeContents(element);
  return range.getClientRects().length;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with run_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """An empty page, whose errors fail the test."""
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    yield page
    page.close()
    assert errors == []


@pytest.mark.pattern("web_single_pattern")
def test_the_docs_predict_the_sample_without_the_internet(page: Page, tmp_path: Path) -> None:
    requested: set[str] = set()
    page.on("request", lambda request: requested.add(request.url))
    compose = copy_of(ROOT / "chapter4_serving_patterns/web_single_pattern", tmp_path)
    with run_service(compose, "api") as server:
        page.goto(f"{server.url}/docs")
        operation = page.locator("#operations-prediction-predict_predict_post")
        operation.click()
        operation.get_by_role("button", name="Try it out").click()
        assert re.sub(r"\s", "", operation.locator("textarea").input_value()) == (
            '{"data":[[5.1,3.5,1.4,0.2]]}'
        )
        operation.get_by_role("button", name="Execute").click()
        response = operation.locator(".live-responses-table .response")
        expect(response.locator(".response-col_status")).to_contain_text("200")
        expect(response).to_contain_text('"prediction": [ [ 0.98')
    assert {url for url in requested if not url.startswith((server.url, "data:"))} == set()


@pytest.mark.pattern("web_single_pattern")
def test_without_the_internet_the_docs_of_fastapi_are_blank(browser: Browser) -> None:
    """The control: this page needs a CDN."""
    with run_uvicorn("tests.careless:app", cwd=ROOT) as server, browser.new_page() as page:
        page.goto(f"{server.url}/docs")
        assert page.locator("body").inner_text().strip() == ""


@pytest.mark.pattern("model_db")
@pytest.mark.parametrize("width", [1000, 400])
def test_the_page_of_the_registry_fits_and_keeps_versions_in_one_line(
    width: int, page: Page, tmp_path: Path
) -> None:
    # As `make register` writes it.
    version = "1.0bbdaa38af79"
    directory = ROOT / "chapter2_training/model_db"
    database = {"DATABASE_URL": f"sqlite:///{tmp_path}/model_db.sqlite"}
    with run_uvicorn("app.main:app", cwd=directory, env=database) as server:
        with httpx.Client(base_url=f"{server.url}/v0.1/api/") as api:
            for name in ("iris", "a_name_without_a_break_" * 4 + "x"):
                project = api.post("projects", json={"project_name": name}).json()
                body = {"project_id": project["project_id"], "model_name": name}
                model_id = api.post("models", json=body).json()["model_id"]
                evaluations = {f"{name}_{number}": 0.9 for number in range(51)}
                body = {"model_id": model_id, "model_version_id": version}
                added = api.post("experiments", json={**body, "evaluations": evaluations}).json()
                path = f"experiments/promote/{added['experiment_id']}"
                api.post(path, json={"expected_champion": None}).raise_for_status()
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(server.url)
        expect(page.get_by_text("12 of 51 evaluations")).to_have_count(2)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for cell in page.locator("td.version").all():
            assert cell.evaluate(LINES) == 1
