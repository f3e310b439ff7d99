"""Pictures composed by code, and the judge on them."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from darkroom.demo import compose, judge, language, scenes, sprites, templates
from darkroom.demo.scenes import Figure, Scene, Spot


def test_every_thing_is_on_the_sheet():
    for name in language.THINGS:
        cover = np.asarray(sprites.from_sheet(name))[..., 3]
        assert cover.shape == (sprites.SHEET_SIDE,) * 2
        assert 0.1 < (cover > 128).mean() < 0.9, name


def test_a_shape_stands_where_its_spot_says():
    image = compose.compose(Scene((Figure("square", "red"),), "white"), [Spot(0.25, 0.5, 0.4)], 100)
    assert image.size == (100, 100)
    assert image.getpixel((25, 50)) == language.COLOURS["red"]
    assert image.getpixel((75, 50)) == language.BACKGROUNDS["white"]


def test_glasses_change_the_face():
    spots = [Spot(0.5, 0.5, 0.6)]
    plain, worn = (compose.compose(Scene((Figure("puppy dog"),), "white", deed=deed), spots, 128) for deed in ("", "glasses"))
    assert not judge.wears_glasses(templates.look(plain))
    assert judge.wears_glasses(templates.look(worn))


def test_pictures_as_numbers():
    array = compose.as_array([Image.new("RGB", (8, 4), (255, 0, 0))])
    assert array.shape == (1, 3, 4, 8)
    assert array.dtype == np.float32
    assert array[0, :, 0, 0].tolist() == [1, -1, -1]


def test_judge_says_yes_to_true_pictures_and_no_to_shuffled_captions():
    for kind, parts in judge.judge_itself(60).items():
        assert parts["true"] >= 0.95, kind
        assert parts["shuffled"] <= 0.1, kind


@pytest.mark.parametrize("side", [128, 512])
def test_judge_at_other_sizes(side):
    rng = random.Random(5)
    drawn = [judge.draw_held_out(rng, kind) for kind in judge.KINDS for _ in range(8)]
    right = [judge.is_right(compose.compose(scene, scenes.place(rng, scene), side), scene) for scene in drawn]
    assert sum(right) >= len(right) - 1


def test_judge_sees_what_is_wrong():
    scene = Scene((Figure("cat"),), "blue")
    spot = Spot(0.5, 0.5, 0.6)
    assert judge.is_right(compose.compose(scene, [spot], 256), scene)
    assert not judge.is_right(compose.compose(Scene((Figure("cat"),), "green"), [spot], 256), scene)
    assert not judge.is_right(compose.compose(Scene((Figure("fox"),), "blue"), [spot], 256), scene)
    twice = Scene((Figure("cat"), Figure("cat")), "blue", relation="and")
    assert not judge.is_right(compose.compose(twice, [Spot(0.25, 0.5, 0.4), Spot(0.75, 0.5, 0.4)], 256), scene)
    assert not judge.is_right(Image.new("RGB", (256, 256), language.BACKGROUNDS["blue"]), scene)
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    assert not judge.is_right(Image.fromarray(noise), scene)


def test_judge_minds_the_order_of_a_pair():
    cat, tree = Figure("cat"), Figure("tree")
    spots = [Spot(0.26, 0.5, 0.42), Spot(0.74, 0.5, 0.42)]
    image = compose.compose(Scene((cat, tree), "white", relation="to the left of"), spots, 256)
    verdicts = {(a, relation): judge.is_right(image, Scene((a, b), "white", relation=relation))
                for a, b in ((cat, tree), (tree, cat)) for relation in scenes.RELATIONS}  # fmt: skip
    assert verdicts == {
        (cat, "to the left of"): True, (cat, "above"): False, (cat, "and"): True,
        (tree, "to the left of"): False, (tree, "above"): False, (tree, "and"): True,
    }  # fmt: skip


@pytest.mark.parametrize("size", scenes.SPAN)
@pytest.mark.parametrize("shape", language.SHAPES)
def test_judge_knows_a_shape_whose_corners_are_soft(shape, size):
    scene = Scene((Figure(shape, "green"),), "red", size=size)
    image = compose.compose(scene, [Spot(0.5, 0.5, sum(scenes.SPAN[size]) / 2)], 256)
    for radius in (1, 3):
        assert judge.is_right(image.filter(ImageFilter.GaussianBlur(radius)), scene), radius


def test_judge_refuses_a_shape_that_is_spoilt():
    ring = Scene((Figure("ring", "orange"),), "purple")
    image = compose.compose(ring, [Spot(0.5, 0.5, 0.6)], 256)
    ImageDraw.Draw(image).ellipse([94, 94, 162, 162], fill="blue")  # something in its middle
    assert not judge.is_right(image, ring)
    star = Scene((Figure("star", "green"),), "purple")
    image = compose.compose(star, [Spot(0.4, 0.4, 0.33)], 256)
    ImageDraw.Draw(image).ellipse([170, 170, 190, 190], fill="blue")  # something beside it
    assert not judge.is_right(image, star)
