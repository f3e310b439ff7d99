"""The ground truth: diffusers' own pipelines, same weights, same seed, fp32 on the CPU, as 8-bit pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import torch

from darkroom.types import Params

from .conftest import Lab, apart, photo, psnr

SIZES = [(128, 128), (256, 192), (192, 320), (512, 512), (768, 384)]
CFGS = [0.0, 1.0, 1.5, 7.0, 20.0]
STRENGTHS = ["0.1", "0.35", "0.5", "0.71", "0.95"]


def params(**changes: object) -> Params:
    return replace(Params(model="tiny", prompt="a red apple on a blue background", steps=12, width=128, height=128, seed=11), **changes)


def strangers(width: int, height: int) -> list[tuple[int, Params]]:
    """Seven others of the same size that join and leave while the eighth runs."""
    image = photo(width, height, seed=3)
    return [
        (0, params(width=width, height=height, seed=21, steps=10, cfg=1.0)),
        (0, params(width=width, height=height, seed=22, steps=18, prompt="a cat", cfg=3.0)),
        (1, params(width=width, height=height, seed=23, steps=10, image=image, control_strength=Decimal("0.6"))),
        (2, params(width=width, height=height, seed=24, steps=11, negative_prompt="a dog", cfg=12.0)),
        (3, params(width=width, height=height, seed=25, steps=10, cfg=0.0)),
        (5, params(width=width, height=height, seed=26, steps=10, image=image, control_strength=Decimal("0.2"), cfg=1.0)),
        (6, params(width=width, height=height, seed=27, steps=10, prompt="a small star", cfg=7.0)),
    ]


def check(lab: Lab, wanted: Params, in_company: bool = True, company: Callable[[int, int], list[tuple[int, Params]]] = strangers) -> None:
    reference = lab.diffusers(wanted)
    (alone,) = lab.ours((0, wanted))
    assert psnr(alone, reference) >= 60
    if in_company:
        crowd = lab.ours((2, wanted), *company(wanted.width, wanted.height))
        assert max(len(batch) for batch in lab.batches if "0" in batch) >= 3, "it never had company"
        assert psnr(crowd[0], reference) >= 60
        assert apart(crowd[0], alone) <= 2


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sizes(lab: Lab, width: int, height: int) -> None:
    check(lab, params(width=width, height=height))


@pytest.mark.parametrize("cfg", CFGS)
@pytest.mark.parametrize("negative_prompt", ["", "a green circle"])
def test_guidance(lab: Lab, cfg: float, negative_prompt: str) -> None:
    check(lab, params(cfg=cfg, negative_prompt=negative_prompt))


@pytest.mark.parametrize("steps", [10, 23, 30, 50])
def test_steps(lab: Lab, steps: int) -> None:
    check(lab, params(steps=steps))


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("cfg", [1.0, 7.0])
def test_image_to_image(lab: Lab, strength: str, cfg: float) -> None:
    control = 1 - Decimal(strength)
    check(lab, params(width=192, height=128, image=photo(192, 128), control_strength=control, cfg=cfg, negative_prompt="a dog"))


@pytest.mark.parametrize(("width", "height"), SIZES[1:4])
def test_image_to_image_sizes(lab: Lab, width: int, height: int) -> None:
    check(lab, params(width=width, height=height, image=photo(width, height), control_strength=Decimal("0.35"), steps=20))


def test_control_strength_0_is_text_to_image(lab: Lab) -> None:
    wanted = params(image=photo(128, 128), control_strength=Decimal(0))
    (picture,) = lab.ours((0, wanted))
    assert psnr(picture, lab.diffusers(replace(wanted, image=None, control_strength=None))) >= 60


def test_control_strength_1_is_one_pass_through_the_vae(lab: Lab) -> None:
    wanted = params(image=photo(128, 128), control_strength=Decimal(1))
    (picture,) = lab.ours((0, wanted))
    pixels = torch.from_numpy(np.frombuffer(wanted.image, np.uint8).reshape(1, 128, 128, 3).copy()).permute(0, 3, 1, 2) / 127.5 - 1
    vae = lab.text_to_image.vae
    with torch.no_grad():
        round_trip = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    expected = ((round_trip[0] / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert psnr(picture, expected) >= 60


def test_a_strength_too_small_for_a_step_still_runs_one(lab: Lab) -> None:
    assert len(lab.family.plan(params(steps=10, image=b"", control_strength=Decimal("0.95"))).table) == 1


@pytest.mark.parametrize(("steps", "control", "run"), [(30, "0.35", 19), (100, "0.71", 29), (10, "0.1", 9), (50, "0.999", 1), (20, "0.5", 10)])
def test_steps_run_are_computed_in_decimal(lab: Lab, steps: int, control: str, run: int) -> None:
    assert len(lab.family.plan(params(steps=steps, image=b"", control_strength=Decimal(control))).table) == run


def test_exact_mode_is_bit_equal_in_company(lab: Lab) -> None:
    wanted = params(steps=10, cfg=7.0)
    (alone,) = lab.ours((0, wanted), exact=True)
    crowd = lab.ours((2, wanted), *strangers(128, 128), exact=True)
    assert all(len(batch) == 1 for batch in lab.batches)
    assert np.array_equal(alone, crowd[0])


def test_another_seed_is_another_picture(lab: Lab) -> None:
    a, b = lab.ours((0, params(seed=1)), (0, params(seed=2)))
    assert psnr(a, b) < 40
