"""What pages and the server's block offer first comes out well, by the judge, at the size that a request has by default."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image

from darkroom.demo.judge import is_right
from darkroom.demo.language import COLOURS, EXAMPLES
from darkroom.demo.scenes import Figure, Scene
from darkroom.demo.templates import bounds, look, nearest
from tests.conftest import Server

LIKE = 0.7  # least part of a thing's energy that its template explains; the judge itself is content with 0.3
PAIR = re.compile(r"an? (.+?) (to the left of|above|and) an? (.+) on an? (\w+) background")
ONE = re.compile(r"an? (.+) on an? (\w+) background")


def figure(words: str) -> Figure:
    colour, _, shape = words.partition(" ")
    return Figure(shape, colour) if colour in COLOURS else Figure(words)


def scene(prompt: str) -> Scene:
    if pair := PAIR.fullmatch(prompt):
        return Scene((figure(pair[1]), figure(pair[3])), pair[4], relation=pair[2])
    one = ONE.fullmatch(prompt)
    assert one is not None, prompt
    return Scene((figure(one[1]),), one[2])


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_an_example_comes_out_right_at_the_default_size(server: Server, prompt: str) -> None:
    reply = server.generate(prompt=prompt, steps=None, width=None, height=None, seed=21)
    image, meant = Image.open(io.BytesIO(reply.content)), scene(prompt)
    assert image.size == (512, 512)
    assert meant.caption == prompt
    assert is_right(image, meant)
    if not meant.relation and not meant.figures[0].colour:
        view = look(image)
        assert nearest(view, bounds(view.mask))[1] >= LIKE
