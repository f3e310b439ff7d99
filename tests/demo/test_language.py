"""The language: its words, its captions, and what is kept from training."""

import json
import random

import pytest

from darkroom.demo import language, scenes
from darkroom.demo.scenes import Figure, Scene

EXPECTED_HELD_OUT = (0.07, 0.13)


def test_size_of_the_language():
    assert len(language.DRAWN) >= 40
    assert {"puppy dog", "cat", "apple", "glasses"} <= set(language.DRAWN)
    assert (len(language.SHAPES), len(language.COLOURS), len(language.BACKGROUNDS)) == (6, 8, 10)


@pytest.mark.parametrize("prompt", [*language.EXAMPLES, "puppy dog", "a cat ", "Put glassed on the dog", "add an apple", "A DOG", ""])
def test_prompts_of_the_language_have_no_unknown_words(prompt):
    assert language.unknown_words(prompt) == []


def test_unknown_words_come_in_order_and_once():
    assert language.unknown_words("a Unicorn, on the moon; 2 unicorns? a unicorn!") == ["unicorn", "2", "unicorns"]
    assert language.unknown_words("a cat", words=["a"]) == ["cat"]


def test_hint_and_examples_speak_the_language():
    quoted = language.HINT.split('"')[1::2]
    assert quoted
    for prompt in (*quoted, *language.EXAMPLES):
        assert language.unknown_words(prompt) == [], prompt


def test_card_is_data():
    assert json.loads(json.dumps(language.card("demo-xl", "sdxl", 7.0)))["language"]["hint"] == language.HINT


def test_captions():
    pair = (Figure("apple"), Figure("circle", "orange"))
    assert Scene(pair, "orange", relation="above").caption == "an apple above an orange circle on an orange background"
    assert Scene((Figure("owl"),), "white", size="small").caption == "a small owl on a white background"


def test_random_captions_are_in_the_language_and_figures_stand_out():
    rng = random.Random(0)
    for _ in range(500):
        scene = scenes.draw_training_scene(rng)
        assert language.unknown_words(scenes.caption(rng, scene)) == []
        assert all(figure.stands_out(scene.ground) for figure in scene.figures)


def test_training_never_draws_what_is_held_out():
    rng = random.Random(1)
    drawn = [scenes.draw_scene(rng, kind) for kind in ("one", "two") for _ in range(1000)]
    share = sum(scene.held_out for scene in drawn) / len(drawn)
    assert EXPECTED_HELD_OUT[0] < share < EXPECTED_HELD_OUT[1]
    assert not any(scenes.draw_training_scene(rng).held_out for _ in range(1000))


def test_holding_out_is_stable():
    """The judge's prompts must stay unseen by checkpoints already trained."""
    scene = Scene((Figure("cat"),), "green")
    assert [Scene((Figure("cat"),), ground).held_out for ground in language.BACKGROUNDS].count(True) <= 4
    assert scene.held_out == Scene((Figure("cat"),), "green").held_out


def test_figures_lie_within_the_picture():
    rng = random.Random(2)
    for _ in range(500):
        scene = scenes.draw_training_scene(rng)
        for spot in scenes.place(rng, scene):
            assert max(abs(spot.x - 0.5), abs(spot.y - 0.5)) + spot.span / 2 <= 0.5, scene
