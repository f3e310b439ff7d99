"""From the first visit to the first picture, and what a person does in the playground."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Page, Route, expect

from tests.conftest import SMALL, Server
from tests.web.conftest import later, watched

LONG = 60_000  # ms that a picture may take


DROP = """([b64, name]) => {
  const bytes = Uint8Array.from(atob(b64), c => c.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], 'star.png', {type: 'image/png'}));
  const place = document.querySelector(`[aria-label="${name}"]`);
  for (const type of ['dragenter', 'dragover', 'drop']) place.dispatchEvent(new DragEvent(type, {dataTransfer, bubbles: true, cancelable: true}));
}"""


def prompt(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill(text)


def small(page: Page) -> None:
    """The quickest settings."""
    page.get_by_role("button", name=re.compile("Small")).click()
    page.get_by_role("spinbutton", name="Steps").fill("10")


def test_from_the_first_visit_to_the_first_picture(browser: Browser, serve: Callable[..., Server]) -> None:
    server = serve("--model", "demo-xl")
    page = watched(browser.new_page())
    page.goto(next(line for line in server.block if line.startswith("Dashboard")).split(": ", 1)[1])
    later(page)
    expect(page.get_by_text(server.service_id, exact=True).first).to_be_visible()
    page.get_by_role("button", name="Make a key").click()
    expect(page.get_by_text(re.compile(r"dk_[a-z0-9]{12}_\S{43}_[0-9a-f]{8}")).first).to_be_visible()
    snippet = page.locator("pre code, pre").first.inner_text()
    key = re.findall(r"dk_\w+_[\w-]+_[0-9a-f]{8}", snippet)[0]
    reply = requests.post(f"{server.service_id}/v1/images/generate", json=SMALL, headers={"Authorization": f"Bearer {key}"}, timeout=60)
    assert reply.status_code == 200
    expect(page.get_by_role("img", name=re.compile(SMALL["prompt"])).first).to_be_visible(timeout=15_000)
    assert page.complaints == []  # type: ignore[attr-defined]


def test_a_prompt_becomes_a_picture_with_its_parameters(page: Page) -> None:
    page.goto("/playground")
    small(page)
    prompt(page, "a strawberry on a white background")
    page.keyboard.press("Control+Enter")
    picture = page.get_by_role("region", name="Result").get_by_role("img", name=re.compile("strawberry")).first
    expect(picture).to_be_visible(timeout=LONG)
    expect(page.get_by_role("link", name=re.compile("Download")).or_(page.get_by_role("button", name=re.compile("Download"))).first).to_be_visible()
    page.reload()
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a strawberry on a white background")


def test_what_is_set_before_the_models_are_told_stands(page: Page) -> None:
    held: list[Route] = []
    page.route(re.compile(r"/v1/models$"), lambda route: held.append(route))  # a bound built-in method is none to Playwright
    page.goto("/playground")
    small(page)
    prompt(page, "a strawberry on a white background")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Make the picture")).to_be_disabled()
    with page.expect_request(lambda request: request.method == "POST") as asked:
        for route in held:
            route.continue_()
    assert {"model": "demo-xl", "width": 256, "height": 256, "steps": 10, "cfg_scale": 7}.items() <= asked.value.post_data_json.items()
    expect(page.get_by_role("region", name="Result").get_by_role("img", name=re.compile("strawberry")).first).to_be_visible(timeout=LONG)


def test_a_running_job_survives_a_reload_and_is_cancelled(page: Page) -> None:
    page.goto("/playground")
    page.get_by_role("spinbutton", name="Steps").fill("50")
    for name in ("Width", "Height"):
        page.get_by_role("spinbutton", name=name).fill("1024")
    prompt(page, "a rocket on a blue background")
    page.get_by_role("button", name="Make the picture").click()
    stop = page.get_by_role("button", name=re.compile("Cancel|Stop")).first
    expect(stop).to_be_visible(timeout=LONG)
    page.reload()
    expect(stop).to_be_visible(timeout=LONG)
    stop.click()
    expect(page.get_by_text(re.compile("cancelled|stopped", re.IGNORECASE)).first).to_be_visible(timeout=LONG)


def test_a_dropped_picture_is_drawn_over(page: Page, server: Server, tmp_path: Path) -> None:
    star = tmp_path / "star.png"
    star.write_bytes(server.generate(prompt="a small red star on a black background", seed=7).content)
    page.goto("/playground")
    small(page)
    page.get_by_role("region", name="Image to image").wait_for()
    page.evaluate(DROP, [base64.b64encode(star.read_bytes()).decode(), "Image to image"])
    expect(page.get_by_text(re.compile(r"keeps 35\s?%.*redraws 65\s?%", re.IGNORECASE)).first).to_be_visible()
    prompt(page, "a small yellow star on a black background")
    page.get_by_role("button", name="Make the picture").click()
    expect(page.get_by_role("region", name="Result").get_by_role("img", name=re.compile("yellow star")).first).to_be_visible(timeout=LONG)
    job = requests.get(f"{server.host}/v1/jobs?limit=1", headers=server.headers(), timeout=30).json()["data"][0]
    assert job["parameters"]["control_strength"] == 0.35


@pytest.mark.parametrize("fault", ["prompt"])
def test_a_missing_prompt_is_said_where_it_is_missing(page: Page, fault: str) -> None:
    page.goto("/playground")
    prompt(page, "")
    page.get_by_role("button", name="Make the picture").click()
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_be_focused()
