"""`make screenshots`: every page at 360, 768 and 1440 px, in both themes, into `screenshots/`; those of the README into `docs/`."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from tests.conftest import Server, start
from tests.web.conftest import ROOT, browser_path, later

OUT = ROOT / "screenshots"
PAGES = ["", "playground", "gallery", "requests", "usage", "keys", "models", "system"]
SIZES = {360: 740, 768: 1024, 1440: 900}
README = {("", "light", 1440): "start.png", ("playground", "light", 1440): "playground.png", ("gallery", "dark", 1440): "gallery.png"}
PROMPTS = [
    "a puppy dog", "a large panda on a green background", "a cat to the left of a tree on a white background", "an apple on a blue background",
    "a rocket and a crescent moon on a purple background", "a small red star on a black background", "a hamburger on a yellow background",
    "a sailboat on a blue background", "a blue circle above a yellow square on a white background", "an owl on a purple background",
    "a sunflower on a blue background", "a fox on a green background",
]  # fmt: skip


def main() -> None:
    path = browser_path()
    if path is None:
        sys.exit("no Chromium is installed (Debian: apt-get install chromium)")
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = start(Path(folder) / "data", "--model", "demo-xl")
        try:
            fill(server)
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(next(line for line in server.block if line.startswith("Dashboard")).split(": ", 1)[1])
            later(page)
            play(page)
            for name in PAGES:
                for scheme in ("light", "dark"):
                    for width, height in SIZES.items():
                        shoot(page, name, scheme, width, height)
        finally:
            server.process.kill()


def fill(server: Server) -> None:
    """Something to look at: pictures, and a request that was refused."""
    for i, prompt in enumerate(PROMPTS):
        server.generate(prompt=prompt, seed=i + 3, width=512, height=512, steps=30)
    server.generate(steps=7)
    time.sleep(2)


def play(page: Page) -> None:
    """A picture made in the playground, which it shows again after every reload."""
    page.goto(f"{page.url.split('/', 3)[0]}//{page.url.split('/')[2]}/playground")
    seed = page.get_by_role("spinbutton", name="Seed")
    page.get_by_role("button", name=re.compile("lock", re.IGNORECASE)).first.click()
    for number, prompt in (
        ("3", "a puppy dog"), ("5", "a cat to the left of a tree on a white background"), ("7", "a rocket and a crescent moon on a purple background"),
    ):  # fmt: skip
        page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
        seed.fill(number)
        page.keyboard.press("Control+Enter")
        page.get_by_role("region", name="Result").get_by_role("img", name=prompt).first.wait_for(timeout=60_000)


def shoot(page: Page, name: str, scheme: str, width: int, height: int) -> None:
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page.goto(f"{'/'.join(page.url.split('/')[:3])}/{name}")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    page.screenshot(path=OUT / f"{name or 'start'}-{scheme}-{width}.png")
    if (name, scheme, width) in README:
        page.screenshot(path=ROOT / "docs" / README[name, scheme, width])


if __name__ == "__main__":
    main()
