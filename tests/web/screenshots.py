"""`make screenshots`: every page at 360, 768 and 1440 px, in both themes, into `screenshots/`; those of the README into `docs/`."""

from __future__ import annotations

import io
import re
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from darkroom.demo.language import EXAMPLES
from tests.conftest import Server, start
from tests.web.conftest import ROOT, browser_path, later

OUT = ROOT / "screenshots"
PAGES = ["", "playground", "gallery", "requests", "usage", "keys", "models", "system"]
SIZES = {360: 740, 768: 1024, 1440: 900}
README = {("", "light", 1440): "start.png", ("playground", "light", 1440): "playground.png", ("gallery", "dark", 1440): "gallery.png"}
PROMPTS = [
    *EXAMPLES,
    "a crab on a white background",
    "a sailboat on a blue background",
    "a small red star on a black background",
]
COLUMNS, SHOWN = 6, 192  # of the README's picture, and pixels of each in it


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
    """Something to look at: pictures, which the README shows too, and a request that was refused."""
    rows = -(-len(PROMPTS) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SHOWN, rows * SHOWN))
    for i, prompt in enumerate(PROMPTS):
        reply = server.generate(prompt=prompt, seed=i + 3, width=512, height=512, steps=30)
        picture = Image.open(io.BytesIO(reply.content)).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        sheet.paste(picture, (i % COLUMNS * SHOWN, i // COLUMNS * SHOWN))
    sheet.save(ROOT / "docs" / "pictures.png", optimize=True)
    server.generate(steps=7)
    time.sleep(2)


def play(page: Page) -> None:
    """A picture made in the playground, which it shows again after every reload."""
    page.goto(f"{page.url.split('/', 3)[0]}//{page.url.split('/')[2]}/playground")
    seed = page.get_by_role("spinbutton", name="Seed")
    page.get_by_role("button", name=re.compile("lock", re.IGNORECASE)).first.click()
    for number, prompt in (
        ("3", "a strawberry and a lemon on a blue background"),
        ("5", "an apple on a blue background"),
        ("7", "a rocket and a crescent moon on a purple background"),
    ):
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
