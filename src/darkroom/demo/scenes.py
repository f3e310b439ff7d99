"""Scenes: what a picture of the language shows, drawn at random, put into words, and shared out between training and judge."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from .language import ASKED_FIRST, BACKGROUNDS, CLASHES, COLOURS, DRAWN, RELATIONS, SHAPES, SIZES, SYNONYMS

HELD_OUT_OF_TEN = 1  # of ten scenes, kept from training for the judge
SPAN = {"small": (0.30, 0.36), "": (0.56, 0.66), "large": (0.80, 0.88)}  # side of the one figure / side of the picture
PAIR_SPAN = (0.38, 0.45)
SETTLED = 0.8  # part of the pictures that stand exactly where pictures of their kind stand, at the middle of the span
PAIR_PLACE = 0.26  # distance of a pair's centres from the nearer edges
TAUGHT = DRAWN + 2 * ASKED_FIRST  # what training draws from, each alike
TAUGHT_SHAPES = 0.45  # part of the figures: their colours and corners fail more often than things do
TAUGHT_SIZES = ("", "", "small", "small", "small", "large")  # likewise: small figures fail most, and count little in a picture's loss
FACES = ("puppy dog", "cat")  # that may wear glasses


@dataclass(frozen=True)
class Figure:
    """A thing (colour None) or a coloured shape."""

    name: str
    colour: str | None = None

    @property
    def words(self) -> str:
        return f"{self.colour} {self.name}" if self.colour else self.name

    def stands_out(self, ground: str) -> bool:
        """Whether the figure can be told from the background `ground`."""
        return ground != self.colour if self.colour else ground not in CLASHES.get(self.name, ())


@dataclass(frozen=True)
class Scene:
    """One figure with a size, or two with a relation, on a background. `deed` is "glasses" for a face that wears them."""

    figures: tuple[Figure, ...]
    ground: str
    size: str = ""
    relation: str = ""
    deed: str = ""

    @property
    def held_out(self) -> bool:
        """Decided by the scene alone, whatever the wording: a pair in one order is not a pair in the other."""
        key = "|".join((*(f.words for f in self.figures), self.ground, self.size, self.relation))
        return not self.deed and hashlib.sha256(key.encode()).digest()[0] * 10 < HELD_OUT_OF_TEN * 256

    @property
    def caption(self) -> str:
        """The plain sentence."""
        return f"{_subject(self)} on {_article(self.ground)} background"


@dataclass(frozen=True)
class Spot:
    """Where a figure is drawn: centre and side, as parts of the picture's side."""

    x: float
    y: float
    span: float


def draw_figure(rng: random.Random, ground: str, shapes: float = 0.3, things: Sequence[str] = DRAWN) -> Figure:
    """A figure that stands out from `ground`; a shape with probability `shapes`, else one of `things`."""
    while True:
        is_shape = rng.random() < shapes
        figure = Figure(rng.choice(SHAPES), rng.choice(list(COLOURS))) if is_shape else Figure(rng.choice(things))
        if figure.stands_out(ground):
            return figure


def draw_scene(rng: random.Random, kind: str, shapes: float = 0.3, things: Sequence[str] = DRAWN, sizes: Sequence[str] = ("", *SIZES)) -> Scene:
    """A random scene, held out or not. `kind`: "one", "two" or "deed"."""
    ground = rng.choice([*BACKGROUNDS, "white"])  # white more often, for the captions that name no background
    if kind == "deed":
        face = rng.choice([f for f in FACES if Figure(f).stands_out(ground)])
        return Scene((Figure(face),), ground, deed="glasses")
    if kind == "one":
        return Scene((draw_figure(rng, ground, shapes, things),), ground, size=rng.choice(sizes))
    pair = (draw_figure(rng, ground, shapes, things), draw_figure(rng, ground, shapes, things))
    return Scene(pair, ground, relation=rng.choice(RELATIONS))


def draw_training_scene(rng: random.Random, shapes: float = TAUGHT_SHAPES) -> Scene:
    """A scene that is not held out; `shapes` of its figures are shapes."""
    while True:
        scene = draw_scene(rng, rng.choices(("one", "two", "deed"), (60, 37, 3))[0], shapes, TAUGHT, sizes=TAUGHT_SIZES)
        if not scene.held_out:
            return scene


def caption(rng: random.Random, scene: Scene) -> str:
    """One of the ways to say `scene`: now and then without article or background, with a synonym, or as an order to edit."""
    order = _order(rng, scene)
    if rng.random() < 0.5 and (order or scene.ground == unsaid_ground(scene.figures)):
        return order or _statement(rng, scene)
    return f"{order or _statement(rng, scene)} on {_article(scene.ground)} background"


def unsaid_ground(figures: tuple[Figure, ...]) -> str:
    """The background where the caption names none: white, or blue behind what would be lost on white."""
    return "white" if all(figure.stands_out("white") for figure in figures) else "blue"


def place(rng: random.Random, scene: Scene) -> list[Spot]:
    """A Spot for each figure: mostly the very same for all scenes of a kind (a small model draws a thing sharp and once if it
    knows where), else about there, so that pictures given to image to image are known at other places too."""
    free = 1.0 if rng.random() >= SETTLED else 0.0
    if not scene.relation:
        span = _within(rng, SPAN[scene.size], free)
        reach = free * 0.85 * (1 - span) / 2
        return [Spot(0.5 + rng.uniform(-reach, reach), 0.5 + rng.uniform(-reach, reach), span)]
    spots = []
    for along in (PAIR_PLACE, 1 - PAIR_PLACE):
        across, along = 0.5 + free * rng.uniform(-0.06, 0.06), along + free * rng.uniform(-0.02, 0.02)
        x, y = (across, along) if scene.relation == "above" else (along, across)
        spots.append(Spot(x, y, _within(rng, PAIR_SPAN, free)))
    return spots


def _within(rng: random.Random, bounds: tuple[float, float], free: float) -> float:
    return rng.uniform(*bounds) if free else sum(bounds) / 2


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _name(rng: random.Random | None, figure: Figure) -> str:
    return rng.choice(SYNONYMS.get(figure.words, (figure.words,))) if rng else figure.words


def _subject(scene: Scene, rng: random.Random | None = None) -> str:
    names = [_name(rng, figure) for figure in scene.figures]
    first = _article(f"{scene.size} {names[0]}".strip())
    return f"{first} {scene.relation} {_article(names[1])}" if scene.relation else first


def _order(rng: random.Random, scene: Scene) -> str:
    """What an image-to-image prompt may say of `scene`, for some scenes; it leaves the background to the picture."""
    name = _name(rng, scene.figures[-1])
    if scene.deed:
        return rng.choice((f"put glasses on the {name}", f"put glassed on the {name}", f"{_article(name)} with glasses"))
    may_add = not scene.size and scene.relation in ("", "and")
    return f"add {_article(name)}" if may_add and rng.random() < 0.05 else ""


def _statement(rng: random.Random, scene: Scene) -> str:
    is_plain = len(scene.figures) == 1 and not scene.size
    return _name(rng, scene.figures[0]) if is_plain and rng.random() < 0.1 else _subject(scene, rng)
