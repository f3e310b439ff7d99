"""The main path of each further page, and what holds for all: no breach of the policy, nothing that axe finds serious."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page, expect

from tests.conftest import Server
from tests.web.conftest import axe, later, new_link, watched

PAGES = ["", "playground", "gallery", "requests", "usage", "keys", "models", "system"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(page: Page, server: Server, name: str, scheme: str) -> None:
    server.generate()
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.goto(f"/{name}")
    page.wait_for_load_state("networkidle")
    assert axe(page) == []


def test_axe_finds_nothing_serious_where_people_sign_in(browser: Browser, server: Server) -> None:
    page = watched(browser.new_page())
    page.goto(f"{server.log_address()}/sign-in")
    page.get_by_role("heading").first.wait_for()
    assert axe(page) == []
    page.close()


def test_no_page_is_wider_than_a_phone(browser: Browser, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    for name in PAGES:
        page.goto(f"/{name}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


def test_a_password_signs_in_where_the_link_is_used_up(browser: Browser, serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_PASSWORD="correct horse battery")
    page = watched(browser.new_page())
    page.goto(f"{server.log_address()}/gallery")
    field = page.get_by_label("Password", exact=True)
    field.fill("wrong")
    field.press("Enter")
    expect(page.get_by_text(re.compile("password is wrong", re.IGNORECASE))).to_be_visible()
    field.fill("correct horse battery")
    field.press("Enter")
    expect(page.get_by_role("heading", name="Gallery")).to_be_visible()
    page.get_by_role("button", name=re.compile("Account")).click()
    page.get_by_role("menuitem", name="Sign out").or_(page.get_by_role("button", name="Sign out")).first.click()
    expect(page.get_by_label("Password", exact=True)).to_be_visible()


def test_a_link_works_in_the_tab_that_asks_for_it(browser: Browser, server: Server) -> None:
    page = watched(browser.new_page())
    page.goto(f"{server.log_address()}/sign-in")
    page.get_by_text(re.compile("Open the one-time link")).wait_for()
    page.goto(new_link(server))  # another address after the # alone: the browser loads nothing
    later(page)
    assert page.complaints == []  # type: ignore[attr-defined]
    page.close()


def test_pictures_are_searched_starred_and_deleted_together(page: Page, server: Server) -> None:
    for seed in (1, 2, 3):
        server.generate(prompt="a lonely snail on a purple background", seed=seed, cfg_scale=1)
    page.goto("/gallery")
    page.get_by_role("searchbox", name="Prompt").fill("snail purple")
    page.wait_for_url(re.compile("prompt=snail"))  # a search begins a moment after the typing, and clears what is chosen
    snails = page.get_by_role("button", name=re.compile("^(?!Star|Choose).*snail"))
    expect(snails).to_have_count(3)
    page.get_by_role("button", name=re.compile("^Star .*snail")).first.click()
    expect(page.get_by_role("button", name=re.compile("^Star .*snail")).first).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Choose", exact=True).click()
    page.get_by_role("button", name=re.compile("^All 3 shown")).click()
    page.get_by_role("toolbar", name="Pictures chosen").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("Delete")).click()
    expect(page.get_by_text(re.compile("3 pictures deleted, .* freed"))).to_be_visible()
    expect(snails).to_have_count(0)
    assert requests.get(f"{server.host}/v1/jobs?limit=3", headers=server.headers(), timeout=30).json()["data"][0]["images"] == []


def test_a_picture_is_opened_and_taken_to_the_playground(page: Page, server: Server) -> None:
    server.generate(prompt="a lonely crab on a pink background", seed=11, steps=12)
    page.goto("/gallery")
    page.get_by_role("searchbox", name="Prompt").fill("crab")
    page.get_by_role("button", name=re.compile("^(?!Star|Choose).*crab")).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("a lonely crab on a pink background").first).to_be_visible()
    dialog.get_by_role("button", name="Run again").click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("^Apply")).click()
    expect(page).to_have_url(re.compile("/playground"))
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a lonely crab on a pink background")
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value("12")
    expect(page.get_by_role("spinbutton", name="Seed")).to_have_value("11")


def test_a_dropped_png_shows_its_parameters_as_a_difference(page: Page, server: Server, tmp_path: Path) -> None:
    png = server.generate(prompt="a lonely fox on a green background", seed=12, steps=14).content
    page.goto("/playground")
    page.get_by_role("textbox", name="Prompt", exact=True).wait_for()
    drop = """([b64]) => {
      const bytes = Uint8Array.from(atob(b64), c => c.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], 'fox.png', {type: 'image/png'}));
      for (const type of ['dragenter', 'dragover', 'drop'])
        document.body.dispatchEvent(new DragEvent(type, {dataTransfer, bubbles: true, cancelable: true}));
    }"""
    page.evaluate(drop, [base64.b64encode(png).decode()])
    dialog = page.get_by_role("dialog", name="Parameters of this picture")
    expect(dialog.get_by_text("a lonely fox on a green background").first).to_be_visible()
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).not_to_have_value("a lonely fox on a green background")
    dialog.get_by_role("button", name=re.compile("^Apply")).click()
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a lonely fox on a green background")
    expect(page.get_by_role("spinbutton", name="Steps")).to_have_value("14")


def test_the_log_shows_what_went_wrong_and_the_body(page: Page, server: Server) -> None:
    refused = server.generate(steps=7, prompt="a lonely pear")
    time.sleep(2)
    page.goto("/requests")
    page.get_by_text(re.compile("invalid_steps")).first.wait_for()
    page.get_by_role("row", name=re.compile("422")).first.get_by_role("button").first.click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("a lonely pear").first).to_be_visible()
    expect(dialog.get_by_text(refused.headers["X-Request-Id"]).first).to_be_visible()


def test_usage_adds_up_and_is_exported(page: Page, server: Server) -> None:
    server.generate()
    time.sleep(2)
    page.goto("/usage")
    expect(page.get_by_role("cell", name="default").or_(page.get_by_role("rowheader", name="default")).first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert Path(download.value.path()).read_text().startswith("group,pictures,pixel_steps,requests,errors,cancelled,p50_ms,p95_ms")


def test_a_key_is_made_shown_once_and_revoked(page: Page, server: Server) -> None:
    page.goto("/keys")
    page.get_by_role("button", name="New key").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("for the tests")
    dialog.get_by_role("button", name="Make the key").click()
    key = dialog.locator("code").first.inner_text()
    models = f"{server.host}/v1/models"
    assert requests.get(models, headers={"Authorization": f"Bearer {key}"}, timeout=30).status_code == 200
    dialog.get_by_role("button", name="I have it").click()
    expect(page.get_by_text(key)).to_have_count(0)
    page.get_by_role("button", name="Revoke for the tests").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("button", name="Revoke for the tests")).to_have_count(0)
    assert requests.get(models, headers={"Authorization": f"Bearer {key}"}, timeout=30).status_code == 401


def test_a_licence_is_read_before_it_is_accepted(browser: Browser, serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    page = watched(browser.new_page())
    page.goto(next(line for line in server.block if line.startswith("Dashboard")).split(": ", 1)[1])
    later(page)
    page.goto(f"{server.log_address()}/models")
    model = page.get_by_role("article", name="stable-diffusion-xl-base-1.0")
    model.get_by_role("button", name="Read and accept the licence").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text(re.compile("RAIL")).first).to_be_visible()
    expect(dialog.get_by_role("button", name="Accept", exact=True)).to_be_disabled()
    dialog.get_by_role("checkbox").check()
    dialog.get_by_role("button", name="Accept", exact=True).click()
    expect(model.get_by_role("button", name="Download")).to_be_visible()
    page.get_by_role("article", name="demo-xl").get_by_role("button", name="Unload").click()
    expect(page.get_by_role("article", name="demo-xl").get_by_role("button", name="Load")).to_be_visible(timeout=15_000)
    assert page.complaints == []  # type: ignore[attr-defined]


def test_the_system_says_how_it_is(page: Page, server: Server) -> None:
    server.generate()
    page.goto("/system")
    expect(page.get_by_text("The worker is ready")).to_be_visible()
    expect(page.get_by_role("link", name="Metrics")).to_have_attribute("href", "/metrics")
    expect(page.get_by_text(re.compile("128 × 128")).first).to_be_visible()


def test_requests_tell_failed_jobs_from_finished_ones(browser: Browser, serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl", DARKROOM_MAX_ATTEMPTS="1")
    later_headers, long = {"Prefer": "respond-async"}, {"steps": 50, "width": 512, "height": 512}
    assert server.generate(prompt="a lonely cat").status_code == 200
    job = server.generate(headers=later_headers, **long).json()
    url = f"{server.host}/v1/jobs/{job['id']}"
    while requests.get(url, headers=server.headers(), timeout=30).json()["status"] != "running":
        time.sleep(0.05)
    server.kill_worker()
    while requests.get(url, headers=server.headers(), timeout=30).json()["status"] != "failed":
        time.sleep(0.05)
    assert server.generate(headers={"Authorization": "Bearer dk_wrong"}).status_code == 401
    page = watched(browser.new_page())
    page.goto(next(line for line in server.block if line.startswith("Dashboard")).split(": ", 1)[1])
    later(page)
    page.goto(f"{server.log_address()}/requests")
    page.get_by_role("row", name=re.compile("200 done")).wait_for()
    refused = page.get_by_role("row", name=re.compile("401"))
    for _ in range(20):  # it is written down a moment after its reply
        if refused.count():
            break
        page.get_by_role("button", name="Refresh").click()
        page.wait_for_load_state("networkidle")
    expect(refused).to_contain_text("is cut off")
    page.get_by_role("row", name=re.compile("202 failed")).get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text(re.compile("the worker died")).first).to_be_visible()
    expect(dialog.get_by_role("link", name="its picture")).to_have_count(0)
    page.keyboard.press("Escape")
    for code in ("400", "405", "413", "415"):
        assert page.get_by_label("Status").locator(f"option[value='{code}']").count() == 1
    page.goto(f"{server.log_address()}/usage")
    expect(page.get_by_role("row", name=re.compile(r"^default .*\b1\b")).first).to_be_visible()
    assert page.complaints == []  # type: ignore[attr-defined]
