"""Norms by channels are PyTorch's own norms, written otherwise."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from darkroom.engine.norms import channelwise, normalise

TOLERANCE = 2e-5


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("groups", "channels"), [(1, 8), (4, 12), (8, 8)])
@pytest.mark.parametrize("level", [0.0, 1000.0])
def test_a_norm_is_the_same(groups: int, channels: int, level: float) -> None:
    norm = nn.GroupNorm(groups, channels, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # all far from zero: a mean of squares less a square of means would have nothing left of it in fp32
    x = level + torch.randn(2, channels, 7, 5) * torch.rand(1, channels, 1, 1)
    exact = norm.double()(x.double()).float()
    assert (normalise(norm.float(), x) - exact).abs().max() < TOLERANCE * (1 + level)


def test_a_shift_is_added_first() -> None:
    norm, x, shift = nn.GroupNorm(2, 6), torch.randn(3, 6, 4, 4), 3 * torch.randn(3, 6)
    assert torch.allclose(normalise(norm, x, shift), norm(x + shift[:, :, None, None]), atol=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [{}, {"out_channels": 24}, {"output_scale_factor": 1.4}, {"time_embedding_norm": "scale_shift"}, {"skip_time_act": True}, {"down": True}, {"up": True}],
    ids=str,
)
def test_a_block_is_the_same_and_its_own_again_after(options: dict) -> None:
    block = ResnetBlock2D(in_channels=16, temb_channels=12, groups=4, **options).eval()
    x, temb = torch.randn(2, 16, 8, 8), torch.randn(2, 12)
    with torch.inference_mode():
        before = block(x, temb)
        with channelwise(block):
            assert torch.allclose(block(x, temb), before, atol=TOLERANCE)
        assert torch.equal(block(x, temb), before)
        assert not any("forward" in vars(part) for part in block.modules())


def test_what_a_net_was_is_restored_after_an_error() -> None:
    block = ResnetBlock2D(in_channels=16, temb_channels=12, groups=4)
    with pytest.raises(KeyError), channelwise(block):
        raise KeyError
    assert not any("forward" in vars(part) for part in block.modules())
