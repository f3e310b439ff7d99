"""The things as pictures: rendered sharp from the icon set where that is at hand (training), else from the packed sheet.

The icons are Fluent Emoji (flat), MIT, npm package @iconify-json/fluent-emoji-flat; `sprites.webp` holds them at
SHEET_SIDE pixels, a row of a grid per eight things in the order of `language.THINGS`.
"""

from __future__ import annotations

import io
import json
import os
from functools import cache
from pathlib import Path

from PIL import Image

from .language import THINGS

SHEET = Path(__file__).parent / "sprites.webp"
SHEET_SIDE = 128
COLUMNS = 8
ICONS_VARIABLE = "DARKROOM_DEMO_ICONS"  # path of the package's icons.json


@cache
def sprite(name: str) -> Image.Image:
    """The thing `name` on a transparent square: RGBA, 512 x 512 from the icons or SHEET_SIDE from the sheet."""
    icons = os.environ.get(ICONS_VARIABLE)
    return render(name, Path(icons), 512) if icons else from_sheet(name)


def render(name: str, icons: Path, side: int) -> Image.Image:
    """The icon of `name`, drawn by resvg: RGBA, side x side."""
    import resvg_py  # a dependency of training only

    svg = _svg(_icons(icons), THINGS[name], side)
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA").resize((side, side))


@cache
def _icons(path: Path) -> dict:
    return json.loads(path.read_text())


def _svg(icons: dict, icon: str, side: int) -> str:
    entry = icons["icons"][icon]
    box = entry.get("width", icons.get("width", 32))
    size = f'viewBox="0 0 {box} {box}" width="{side}" height="{side}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{entry["body"]}</svg>'


@cache
def _sheet() -> Image.Image:
    return Image.open(SHEET).convert("RGBA")


def from_sheet(name: str) -> Image.Image:
    """The thing `name` as the sheet keeps it: RGBA, SHEET_SIDE x SHEET_SIDE."""
    row, column = divmod(list(THINGS).index(name), COLUMNS)
    left, top = column * SHEET_SIDE, row * SHEET_SIDE
    return _sheet().crop((left, top, left + SHEET_SIDE, top + SHEET_SIDE))


def write_sheet(icons: Path, out: Path = SHEET) -> None:
    """Pack every thing into the sheet (lossless WebP)."""
    rows = -(-len(THINGS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * SHEET_SIDE, rows * SHEET_SIDE))
    for i, name in enumerate(THINGS):
        row, column = divmod(i, COLUMNS)
        sheet.paste(render(name, icons, SHEET_SIDE), (column * SHEET_SIDE, row * SHEET_SIDE))
    sheet.save(out, lossless=True, quality=100, method=6)
