"""Pictures of scenes, composed from sprites: the training's pictures and the judge's templates."""

from __future__ import annotations

import math
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw

from .language import BACKGROUNDS, COLOURS
from .scenes import Figure, Scene, Spot
from .sprites import sprite

SHARP = 512  # side at which shapes are drawn before they are scaled down


def draw_shape(name: str, colour: tuple[int, int, int], side: int = SHARP) -> Image.Image:
    """A flat shape that fills most of a transparent square: RGBA, side x side."""
    image = Image.new("RGBA", (side, side), (*colour, 0))
    draw, c, r, fill = ImageDraw.Draw(image), side / 2, side * 0.44, (*colour, 255)
    if name == "circle":
        draw.ellipse([c - r, c - r, c + r, c + r], fill=fill)
    elif name == "square":
        draw.rectangle([c - r * 0.88, c - r * 0.88, c + r * 0.88, c + r * 0.88], fill=fill)
    elif name == "triangle":
        draw.polygon([(c, c - r), (c + r * 0.95, c + r * 0.8), (c - r * 0.95, c + r * 0.8)], fill=fill)
    elif name == "star":
        draw.polygon([_star_corner(i, c, r) for i in range(10)], fill=fill)
    elif name == "ring":
        draw.ellipse([c - r, c - r, c + r, c + r], outline=fill, width=int(r * 0.35))
    else:
        assert name == "cross"
        draw.rectangle([c - r * 0.36, c - r, c + r * 0.36, c + r], fill=fill)
        draw.rectangle([c - r, c - r * 0.36, c + r, c + r * 0.36], fill=fill)
    return image


def _star_corner(i: int, c: float, r: float) -> tuple[float, float]:
    reach = r if i % 2 == 0 else r * 0.42
    return c + reach * math.sin(i * math.pi / 5), c - reach * math.cos(i * math.pi / 5)


@cache
def figure_image(figure: Figure) -> Image.Image:
    """The figure on a transparent square, RGBA, as large as it is kept."""
    return draw_shape(figure.name, COLOURS[figure.colour]) if figure.colour else sprite(figure.name)


@lru_cache(maxsize=2000)  # 0.2 MB each on average
def scaled(figure: Figure, side: int) -> Image.Image:
    """The figure on a transparent square of `side` pixels."""
    return figure_image(figure).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3)


def compose(scene: Scene, spots: list[Spot], side: int) -> Image.Image:
    """The picture of `scene`, RGB, side x side."""
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.ground])
    for figure, spot in zip(scene.figures, spots, strict=True):
        _paste(image, figure, spot)
    if scene.deed == "glasses":
        _paste(image, Figure("glasses"), _on_nose(spots[0]))
    return image


def _on_nose(face: Spot) -> Spot:
    return Spot(face.x, face.y - 0.04 * face.span, face.span * 0.78)


def with_glasses(face: str) -> Image.Image:
    """The thing `face` with the glasses on, on a transparent square: RGBA."""
    image = figure_image(Figure(face)).copy()
    _paste(image, Figure("glasses"), _on_nose(Spot(0.5, 0.5, 1.0)))
    return image


def _paste(image: Image.Image, figure: Figure, spot: Spot) -> None:
    side = image.width
    width = max(8, round(spot.span * side))
    picture = scaled(figure, width)
    image.paste(picture, (round(spot.x * side - width / 2), round(spot.y * side - width / 2)), picture)


def as_array(images: list[Image.Image]) -> np.ndarray:
    """[n, 3, height, width] float32 in -1..1."""
    return np.stack([np.asarray(image, dtype=np.float32) for image in images]).transpose(0, 3, 1, 2) / 127.5 - 1
