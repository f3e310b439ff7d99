"""A person in a real browser. Whatever the browser complains about, an error in its console or a breach of the policy, fails the test."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import Server

ROOT = Path(__file__).parent.parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser_path() -> str | None:
    """Chromium of the system: the tests download none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")  # and no longer: while it is open an event loop runs in this thread, which tests that are async cannot have
def browser() -> Iterator[Browser]:
    path = browser_path()
    if path is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    if not (ROOT / "src" / "darkroom" / "web" / "index.html").exists():
        pytest.skip("the dashboard is not built: make src/darkroom/web/index.html")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


def new_link(server: Server) -> str:
    """A link that signs in once."""
    made = server.cli("link").stdout.strip()
    return f"{server.log_address()}/sign-in{made[made.index('#') :]}"


def watched(page: Page) -> Page:
    """The page, with all that its browser complains about in `complaints`."""
    page.complaints = []  # type: ignore[attr-defined]
    page.on("console", lambda message: page.complaints.append(message.text) if message.type in ("error", "warning") else None)  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.complaints.append(str(error)))  # type: ignore[attr-defined]
    return page


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A signed-in person's page, with the permission to use the clipboard."""
    context = browser.new_context(base_url=server.log_address(), viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    opened = watched(context.new_page())
    opened.goto(new_link(server))
    later(opened)
    yield opened
    complaints = [line for line in opened.complaints if not re.search(r"status of 4\d\d", line)]  # type: ignore[attr-defined] - refusals that tests ask for
    context.close()
    assert complaints == []


def later(page: Page) -> None:
    """Past the question for a password, to the first page."""
    button = page.get_by_role("button", name=re.compile("later", re.IGNORECASE))
    button.wait_for()
    button.click()
    page.get_by_role("heading", name="Start", exact=True).wait_for()


def axe(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    page.evaluate((ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js").read_text())
    found = page.evaluate("async () => (await axe.run()).violations.filter(v => ['serious', 'critical'].includes(v.impact))")
    return [f"{one['id']}: {one['nodes'][0]['html'][:150]} {one['nodes'][0]['failureSummary'][:200]}" for one in found]
