"""What the judge measures a picture with: its background, its foreground, and the nearest template of a thing or a shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from .compose import figure_image, with_glasses
from .language import BACKGROUNDS, COLOURS, DRAWN, SHAPES
from .scenes import FACES, Figure

SIDE = 128  # pictures are judged at this size
GRID = 32  # and figures compared at this one
TOLD_APART = 48  # of 255, largest channel: foreground differs so much from the background
ALIKE = 0.75  # least part of a shape's and the foreground's cover together that both cover
SHIFTS = (-0.04, 0.0, 0.04)  # of the window's side
SCALES = (0.93, 1.0, 1.08)


@dataclass(frozen=True)
class View:
    """A picture as the judge sees it: pixels [SIDE, SIDE, 3] float, the background's colour,
    and the foreground [SIDE, SIDE] bool."""

    pixels: np.ndarray
    ground: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Window:
    """A square part of a picture, in pixels of SIDE."""

    left: float
    top: float
    side: float


def look(image: Image.Image) -> View:
    """Shrink a picture and part its foreground from the background, which is the median colour of the outermost pixels."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float32)
    edges = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
    rim = np.concatenate([edge.reshape(-1, 3) for edge in edges])
    ground = np.median(rim, axis=0)
    return View(pixels, ground, np.abs(pixels - ground).max(-1) > TOLD_APART)


def ground_name(view: View) -> str | None:
    """The background of the language that is nearest, or None where none is near."""
    distances = {name: float(np.linalg.norm(view.ground - np.array(rgb))) for name, rgb in BACKGROUNDS.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] < 50 else None


def colour_name(view: View) -> str:
    """The colour of the language nearest to the foreground's median."""
    middle = np.median(view.pixels[view.mask], axis=0)
    return min(COLOURS, key=lambda name: float(np.linalg.norm(middle - np.array(COLOURS[name]))))


def bounds(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the foreground without stray pixels, or None where there is hardly any."""
    sides = []
    for axis in (0, 1):
        full = np.flatnonzero(mask.sum(axis) >= 2)
        if len(full) < 4:
            return None
        sides.append((full[0], full[-1] + 1))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def window(box: tuple[int, int, int, int]) -> Window:
    """The square about the middle of `box` that holds it."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    return Window((left + right - side) / 2, (top + bottom - side) / 2, side)


def _template(image: Image.Image) -> np.ndarray:
    """[GRID, GRID, 4] float: the figure's colour times its cover, and its cover 0..1, in the window that just holds it."""
    cover = np.asarray(image)[..., 3] > 100
    w = window(bounds(cover) or (0, 0, *image.size))
    box = (w.left, w.top, w.left + w.side, w.top + w.side)
    cut = np.asarray(_cut(image, box, 4 * GRID), dtype=np.float32)
    cut[..., :3] *= cut[..., 3:] / 255
    cut[..., 3] /= 255
    return cut.reshape(GRID, 4, GRID, 4, 4).mean((1, 3))


def _cut(image: Image.Image, box: tuple[float, ...], side: int) -> Image.Image:
    left, top, right, bottom = box
    step_x, step_y = (right - left) / side, (bottom - top) / side
    return image.transform((side, side), Image.Transform.AFFINE, (step_x, 0, left, 0, step_y, top), Image.Resampling.BILINEAR)


@cache
def _stack(extra: bool) -> tuple[tuple[Figure, ...], np.ndarray]:
    figures = tuple(Figure(name) for name in DRAWN) + tuple(Figure(shape, colour) for shape in SHAPES for colour in COLOURS)
    templates = [_template(figure_image(figure)) for figure in figures]
    if extra:
        figures += tuple(Figure(f"{face} with glasses") for face in FACES)
        templates += [_template(with_glasses(face)) for face in FACES]
    return figures, np.stack(templates)


def nearest(view: View, box: tuple[int, int, int, int], extra: bool = False) -> tuple[Figure, float]:
    """The figure whose template over `view`'s background is nearest at the best shift and scale, and the part 0..1 of the
    foreground's energy that it explains. With `extra` also the faces that wear glasses."""
    figures, stack = _stack(extra)
    expected = stack[..., :3] + (1 - stack[..., 3:]) * view.ground
    best = np.full(len(figures), np.inf)
    found = 1.0
    for cut in _cuts(view, window(box)):
        energy = float(((cut - view.ground) ** 2).mean()) + 1.0
        errors = ((cut - expected) ** 2).mean((1, 2, 3)) / energy
        if errors.min() < best.min():
            found = float(errors.min())
        best = np.minimum(best, errors)
    return figures[int(best.argmin())], 1 - found


def _cuts(view: View, w: Window):
    image = Image.fromarray(view.pixels.clip(0, 255).astype(np.uint8))
    ground = tuple(int(v) for v in view.ground)
    padded = Image.new("RGB", (2 * SIDE, 2 * SIDE), ground)
    padded.paste(image, (SIDE // 2, SIDE // 2))
    for scale in SCALES:
        side = w.side * scale
        for dx in SHIFTS:
            for dy in SHIFTS:
                left = w.left + (w.side - side) / 2 + dx * side + SIDE // 2
                top = w.top + (w.side - side) / 2 + dy * side + SIDE // 2
                yield np.asarray(_cut(padded, (left, top, left + side, top + side), GRID), dtype=np.float32)


@cache
def _shape_covers() -> np.ndarray:
    """[shapes, GRID, GRID] cover 0..1."""
    return np.stack([_template(figure_image(Figure(name, "black")))[..., 3] for name in SHAPES])


def shape_name(mask: np.ndarray) -> str | None:
    """The shape whose cover shares most with the foreground's at the best shift and scale (intersection over union), or None
    where none shares ALIKE with it."""
    box = bounds(mask)
    if box is None:
        return None
    covers, best = _shape_covers(), np.zeros(len(SHAPES))
    seen = View(np.repeat(mask[..., None] * 255.0, 3, -1), np.zeros(3), mask)
    for cut in _cuts(seen, window(box)):
        cover = cut[..., 0] / 255
        best = np.maximum(best, np.minimum(covers, cover).sum((1, 2)) / np.maximum(covers, cover).sum((1, 2)))
    return SHAPES[int(best.argmax())] if best.max() >= ALIKE else None
