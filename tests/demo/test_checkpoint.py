"""The checkpoint in the box: opens, is small, and draws what it is asked."""

import json

import pytest
import torch

from darkroom.demo import judge, language
from darkroom.demo.compose import compose
from darkroom.demo.folder import size_of
from darkroom.demo.scenes import Figure, Scene, Spot

MOST = 25_000_000  # bytes
LEAST_OF_FOUR = 2  # chance is one in a hundred: this tells a checkpoint that draws from one that does not


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(2)
    return judge.Model(judge.CHECKPOINT)


def test_size():
    assert size_of(judge.CHECKPOINT) <= MOST


def test_scheduler_is_sdxls():
    config = json.loads((judge.CHECKPOINT / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "EulerDiscreteScheduler"
    assert (config["prediction_type"], config["timestep_spacing"], config["steps_offset"]) == ("epsilon", "leading", 1)


def test_darkroom_json_is_the_language():
    assert json.loads((judge.CHECKPOINT / "darkroom.json").read_text()) == language.card("demo-xl", "sdxl")


def test_card_credits_the_icons():
    card = (judge.CHECKPOINT / "README.md").read_text()
    assert "Fluent Emoji" in card
    assert "MIT" in card


def test_classes(model):
    names = [type(part).__name__ for part in (model.pipe.unet, model.pipe.vae, model.pipe.text_encoder, model.pipe.text_encoder_2)]
    assert names == ["UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel", "CLIPTextModelWithProjection"]


def test_held_out_pictures(model):
    """A few of what `python -m darkroom.demo.judge` counts by the hundred."""
    result = judge.judge_kind(model, "shape", 256, 4)
    assert result["right"] >= LEAST_OF_FOUR, result


def test_same_seed_same_picture(model):
    first, second = (model.draw("a cat", 64, seed=1, steps=2) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_edit_keeps_the_picture_at_09(model):
    scene = Scene((Figure("circle", "red"),), "white")
    image = compose(scene, [Spot(0.5, 0.5, 0.6)], 256)
    edited = judge.look(model.edit("a blue circle on a white background", image, 0.9, seed=1))
    assert judge.is_figure(edited, scene.figures[0])
