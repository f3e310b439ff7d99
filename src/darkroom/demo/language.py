"""The language of the demo checkpoints: what a caption may say, and which captions were kept from training.

Standard library only, so that the gateway's note about a prompt costs no import of torch or numpy.
"""

from __future__ import annotations

import re
from collections.abc import Collection

# word in a caption -> icon in @iconify-json/fluent-emoji-flat
THINGS = {
    "puppy dog": "dog-face", "cat": "cat-face", "apple": "red-apple", "glasses": "glasses", "tree": "deciduous-tree",
    "house": "house", "sun": "sun", "crescent moon": "crescent-moon", "star": "star", "heart": "red-heart",
    "car": "automobile", "bicycle": "bicycle", "sailboat": "sailboat", "airplane": "airplane", "rocket": "rocket",
    "banana": "banana", "strawberry": "strawberry", "lemon": "lemon", "cherries": "cherries", "pear": "pear",
    "mushroom": "mushroom", "sunflower": "sunflower", "tulip": "tulip", "cactus": "cactus", "fish": "fish",
    "penguin": "penguin", "owl": "owl", "pig": "pig-face", "rabbit": "rabbit-face", "bear": "bear", "panda": "panda",
    "fox": "fox", "frog": "frog", "lady beetle": "lady-beetle", "snail": "snail", "crab": "crab",
    "hot beverage": "hot-beverage", "birthday cake": "birthday-cake", "pizza": "pizza", "hamburger": "hamburger",
    "doughnut": "doughnut", "watermelon": "watermelon", "key": "key", "umbrella": "umbrella", "balloon": "balloon",
    "soccer ball": "soccer-ball", "crown": "crown", "cloud": "cloud",
}  # fmt: skip
RETIRED = ("bicycle", "star", "key")  # in the vocabulary, but drawn badly by so small a model (the shape star stays)
DRAWN = tuple(name for name in THINGS if name not in RETIRED)
ASKED_FIRST = ("puppy dog", "cat", "apple", "glasses")  # by the manual's own bodies: taught more often than the rest
SYNONYMS = {"puppy dog": ("puppy dog", "dog", "puppy")}
COLOURS = {
    "red": (220, 40, 40), "green": (40, 170, 70), "blue": (45, 80, 220), "yellow": (245, 210, 40),
    "purple": (140, 60, 180), "orange": (245, 140, 30), "white": (250, 250, 250), "black": (20, 20, 20),
}  # fmt: skip
BACKGROUNDS = {**COLOURS, "pink": (250, 180, 200), "gray": (150, 150, 155)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = ("small", "", "large")
RELATIONS = ("to the left of", "above", "and")
EXTRA_WORDS = ("put", "glassed", "glasses", "the", "add", "with", "dog", "puppy", "it", "picture", "to")
GRAMMAR = ["a", "an", "on", "background", "and", "above", "to", "the", "left", "of", "small", "large"]
# The vocabulary of the tokenizer is learnt from these, in this order: changing them asks for training from nothing.
WORDS = sorted({w for name in THINGS for w in name.split()} | {*COLOURS, *SHAPES, *BACKGROUNDS, *GRAMMAR})
# Backgrounds on which a thing is hardly seen (over 70 % of it within 70 of 255 of their colour): not of the language.
CLASHES = {
    "cat": ("yellow", "orange"), "apple": ("red",), "tree": ("green",), "crescent moon": ("yellow",), "star": ("yellow",),
    "heart": ("red",), "lemon": ("yellow",), "pear": ("yellow",), "pig": ("pink",), "rabbit": ("white", "pink", "gray"),
    "bear": ("red",), "crab": ("red",), "pizza": ("yellow",), "key": ("yellow", "orange"), "umbrella": ("purple", "gray"),
    "balloon": ("red",), "crown": ("yellow", "orange"), "cloud": ("white", "pink"), 
    "sun": ("yellow", "orange"), "sunflower": ("green", "yellow"),
}  # fmt: skip
KNOWN = {w for name in DRAWN for w in name.split()} | {*COLOURS, *SHAPES, *BACKGROUNDS, *GRAMMAR, *EXTRA_WORDS}
HINT = (
    f"It is a small demonstration model that knows {len(DRAWN)} things, six shapes, eight colours and ten backgrounds; "
    'ask it for example: "a rocket on a black background", "a yellow star on a purple background" '
    'or "a strawberry and a lemon on a blue background".'
)
# What pages and the server's block offer first: of some fifty drawn at 512 pixels, those that the judge found most like what they
# show, seed by seed, and that look it.
EXAMPLES = (
    "an apple on a blue background",
    "a rocket on a black background",
    "a strawberry on a white background",
    "a yellow star on a purple background",
    "a heart on a pink background",
    "a pizza on a blue background",
    "a rocket and a crescent moon on a purple background",
    "a crown above a heart on a white background",
    "a strawberry and a lemon on a blue background",
)


def unknown_words(prompt: str, words: Collection[str] = ()) -> list[str]:
    """The words of `prompt`, in order and once each, that the language (or `words`, where given) does not have."""
    known = set(words) or KNOWN
    found = re.findall(r"[^\W\d_]+|\d+", prompt.lower())
    return [word for word in dict.fromkeys(found) if word not in known]


def card(name: str, family: str, cfg: float) -> dict:
    """What `darkroom.json` in the checkpoint folder says, so that a gateway needs no import of this package."""
    return {
        "name": name, "family": family, "default_side": 512, "max_side": 1024, "default_cfg": cfg, "license": "Apache-2.0",
        "language": {"words": sorted(KNOWN), "hint": HINT}, "examples": list(EXAMPLES),
    }  # fmt: skip
