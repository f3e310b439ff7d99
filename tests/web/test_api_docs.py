"""/docs as a person meets it: the operations are there, and one can be tried."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

import darkroom
from tests.conftest import Server
from tests.web.conftest import watched


@pytest.fixture
def docs(browser: Browser, server: Server) -> Iterator[Page]:
    """The page in the browser of somebody who is not signed in to the dashboard."""
    page = watched(browser.new_page())
    page.goto(f"{server.log_address()}/docs")
    page.locator(".opblock").first.wait_for()
    yield page
    page.close()


def test_every_operation_is_shown_and_one_can_be_tried(docs: Page, server: Server) -> None:
    schema = requests.get(f"{server.host}/openapi.json", timeout=30).json()
    assert docs.locator(".opblock").count() == sum(len(methods) for methods in schema["paths"].values())
    docs.get_by_role("button", name="Authorize").first.click()
    docs.get_by_role("dialog").or_(docs.locator(".modal-ux")).get_by_role("textbox").fill(server.key)
    docs.locator(".modal-ux").get_by_role("button", name=re.compile("Apply credentials|Authorize")).click()
    docs.locator(".modal-ux").get_by_role("button", name="Close", exact=True).click()
    operation = docs.locator(".opblock", has_text="/v1/models")
    operation.locator(".opblock-summary-control").click()
    operation.get_by_role("button", name="Execute").click()
    reply = operation.locator(".live-responses-table")
    expect(reply.locator(".response-col_status").last).to_have_text(re.compile("200"))
    expect(reply.get_by_text("demo-xl").first).to_be_visible()
    expect(operation.locator(".curl-command")).to_contain_text("--fail-with-body")
    assert docs.complaints == []  # type: ignore[attr-defined]


def test_without_the_dashboard_the_page_says_where_the_api_is_described(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    package = tmp_path / "darkroom"
    package.mkdir()
    for item in Path(str(darkroom.__file__)).parent.iterdir():
        if item.name not in ("web", "__pycache__"):
            (package / item.name).symlink_to(item)
    server = serve("--model", "demo-xl", DARKROOM_PRELOAD="false", PYTHONPATH=str(tmp_path))
    page = requests.get(f"{server.host}/docs", timeout=30)
    assert page.status_code == 200
    assert 'href="/openapi.json"' in page.text
    assert "not built" in page.text
