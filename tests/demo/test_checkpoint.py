"""The checkpoints in the box: each opens, is small, and draws what it is asked."""

import json

import pytest
import torch

from darkroom.demo import judge, language, train
from darkroom.demo.compose import compose
from darkroom.demo.folder import size_of
from darkroom.demo.scenes import Figure, Scene, Spot

MOST = 25_000_000  # bytes
LEAST_OF_FOUR = 2  # chance is one in a hundred: this tells a checkpoint that draws from one that does not


@pytest.fixture(scope="module", params=list(train.KINDS.values()), ids=list(train.KINDS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind):
    return judge.CHECKPOINT.with_name(kind.name)


@pytest.fixture(scope="module")
def model(folder):
    torch.set_num_threads(1)  # two would spin against the suite's other process: 138 s in place of a few
    return judge.Model(folder)


def test_size(folder):
    assert size_of(folder) <= MOST


def test_scheduler_is_sdxls():
    config = json.loads((judge.CHECKPOINT / "scheduler" / "scheduler_config.json").read_text())
    assert config["_class_name"] == "EulerDiscreteScheduler"
    assert (config["prediction_type"], config["timestep_spacing"], config["steps_offset"]) == ("epsilon", "leading", 1)


def test_scheduler_is_sd35s():
    config = json.loads((judge.CHECKPOINT.with_name("demo-3.5") / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["shift"]) == ("FlowMatchEulerDiscreteScheduler", 3.0)


def test_darkroom_json_is_the_language(kind, folder):
    assert json.loads((folder / "darkroom.json").read_text()) == language.card(kind.name, kind.family, kind.cfg)


def test_card_credits_the_icons(folder):
    card = (folder / "README.md").read_text()
    assert "Fluent Emoji" in card
    assert "MIT" in card


def test_classes(model, kind):
    names = {part: type(net).__name__ for part, net in model.pipe.components.items() if isinstance(net, torch.nn.Module)}
    denoiser, first = {
        "sdxl": ({"unet": "UNet2DConditionModel"}, "CLIPTextModel"), "sd3": ({"transformer": "SD3Transformer2DModel"}, "CLIPTextModelWithProjection"),
    }[kind.family]  # fmt: skip
    assert names == denoiser | {"vae": "AutoencoderKL", "text_encoder": first, "text_encoder_2": "CLIPTextModelWithProjection"}


def test_held_out_pictures(model, kind):
    """A few of what `python -m darkroom.demo.judge` counts by the hundred."""
    result = judge.judge_kind(model, "shape", 256, 4, cfg=kind.cfg)
    assert result["right"] >= LEAST_OF_FOUR, result


def test_same_seed_same_picture(model):
    first, second = (model.draw("a cat", 64, seed=1, steps=2) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_edit_keeps_the_picture_at_09(model):
    scene = Scene((Figure("circle", "red"),), "white")
    image = compose(scene, [Spot(0.5, 0.5, 0.6)], 256)
    edited = judge.look(model.edit("a blue circle on a white background", image, 0.9, seed=1))
    assert judge.is_figure(edited, scene.figures[0])
